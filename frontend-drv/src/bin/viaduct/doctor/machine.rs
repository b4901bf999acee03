//! Checks of the kernel and its limits, as they are for the present user.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};

use super::{Findings, socket_diag};

pub(super) fn check(findings: &mut Findings) {
    check_kernel(findings);
    check_proc(findings);
    match socket_diag::try_out() {
        Ok(()) => findings.ok("NETLINK_SOCK_DIAG: finds a TCP connection and its inode"),
        Err(error) => findings.problem(format!(
            "NETLINK_SOCK_DIAG: {error}: the daemon cannot prove identities; load the module tcp_diag, or allow AF_NETLINK"
        )),
    }
    match make_sealed_memory() {
        Ok(()) => findings.ok("memfd_create: makes and seals memory"),
        Err(error) => findings.problem(format!(
            "memfd_create: {error}: no shared memory can be made; a seccomp filter forbids it"
        )),
    }
    check_files(findings);
    check_maps(findings);
    check_overcommit(findings);
    check_cores(findings);
}

fn check_kernel(findings: &mut Findings) {
    let release = match uname() {
        Ok(names) => names.release().to_string_lossy().into_owned(),
        Err(error) => return findings.problem(format!("kernel: uname fails: {error}")),
    };
    match version(&release) {
        Some(version) if version >= KERNEL_MIN => findings.ok(format!("kernel {release}")),
        Some(_) => findings.problem(format!(
            "kernel {release}: older than {}.{}, which SO_NETNS_COOKIE needs: use a newer one",
            KERNEL_MIN.0, KERNEL_MIN.1
        )),
        None => findings.note(format!(
            "kernel {release}: not a version that can be compared"
        )),
    }
}

fn check_proc(findings: &mut Findings) {
    if Path::new("/proc/self/fd/0")
        .parent()
        .is_some_and(|dir| fs::read_dir(dir).is_ok())
    {
        findings.ok("/proc: mounted");
    } else {
        findings.problem(
            "/proc: not mounted or not readable: programs stay on TCP (no_proc); mount it",
        );
    }
}

fn check_files(findings: &mut Findings) {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < FILES_MIN => findings.note(format!(
            "RLIMIT_NOFILE: {soft} (hard {hard}) is little, connections may be declined (fd_limit): ulimit -n {FILES_MIN}"
        )),
        Ok((soft, hard)) => findings.ok(format!("RLIMIT_NOFILE: {soft} (hard {hard})")),
        Err(error) => findings.note(format!("RLIMIT_NOFILE: unknown: {error}")),
    }
}

fn check_maps(findings: &mut Findings) {
    let name = "vm.max_map_count";
    match sysctl(name) {
        Some(maps) if maps < MAPS_MIN => findings.note(format!(
            "{name}: {maps} is less than the usual {MAPS_MIN}, connections may be declined (map_limit): sysctl -w {name}={MAPS_MIN}"
        )),
        Some(maps) => findings.ok(format!("{name}: {maps}")),
        None => findings.note(format!("{name}: cannot be read")),
    }
}

fn check_overcommit(findings: &mut Findings) {
    let name = "vm.overcommit_memory";
    match sysctl(name) {
        Some(2) => findings.note(format!(
            "{name}: 2 (strict): rings are charged in full when they are made; use a smaller --ring-bytes if memory is short"
        )),
        Some(mode) => findings.ok(format!("{name}: {mode}")),
        None => findings.note(format!("{name}: cannot be read")),
    }
}

fn check_cores(findings: &mut Findings) {
    match std::thread::available_parallelism().map(usize::from) {
        Ok(1) => findings.note(
            "cores: 1: both ends share it, so waiting means sleeping, and round trips gain little",
        ),
        Ok(cores) => findings.ok(format!("cores: {cores}")),
        Err(error) => findings.note(format!("cores: unknown: {error}")),
    }
}

fn make_sealed_memory() -> rustix::io::Result<()> {
    let memory = memfd_create(
        "viaduct-doctor",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    ftruncate(&memory, 4096)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&memory, seals)?;
    match fcntl_get_seals(&memory)?.contains(seals) {
        true => Ok(()),
        false => Err(rustix::io::Errno::PERM),
    }
}

fn sysctl(name: &str) -> Option<u64> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Major and minor number of a release such as `6.1.0-49-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

const KERNEL_MIN: (u32, u32) = (5, 14);
const FILES_MIN: u64 = 1024;
const MAPS_MIN: u64 = 65_530;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-49-amd64"), Some((6, 1)));
        assert_eq!(version("5.14"), Some((5, 14)));
        assert_eq!(version("5.4.0+"), Some((5, 4)));
        assert_eq!(version("next"), None);
        assert!(version("5.9.1") < Some(KERNEL_MIN));
    }
}

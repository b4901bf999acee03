//! A guest: QEMU around a kernel and a file system, and commands inside.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::control::{Control, Said};
use super::initramfs::Contents;
use super::kernel::Kernel;
use super::monitor::Monitor;

/// How long a guest may take to come up, on a machine that has other things to do.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How long a command may take if nothing else is said.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// What speeds up a boot on an emulated processor, and an end instead of a restart after a panic. A machine that has
/// other things to do may be too slow for the kernel's test of its timer.
const KERNEL: &str = "console=ttyS0 panic=-1 quiet loglevel=3 nokaslr mitigations=off cryptomgr.notests \
                      random.trust_cpu=on no_timer_check";

/// How a guest is connected to others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// Not at all.
    #[default]
    None,
    /// By this interface of the host's, which exists: the fastest. Needs root.
    Tap(String),
    /// To one other guest, that connects here.
    Listen(PathBuf),
    /// To one other guest, that listens here.
    Connect(PathBuf),
}

/// What a guest is to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Where everything of it lies; also what is said in messages.
    pub directory: PathBuf,
    /// What is in its file system.
    pub contents: Contents,
    /// Its memory in MiB.
    pub memory: u32,
    /// Its address, with the length of the prefix.
    pub address: Option<String>,
    /// How it is connected.
    pub network: Network,
    /// The socket of the server of its region: it gets an ivshmem device.
    pub region: Option<PathBuf>,
    /// Vectors of that device.
    pub vectors: u16,
    /// Whether there is a place where that device can be unplugged and plugged in.
    pub pluggable: bool,
    /// The directory of a guest that is to migrate here. This one waits for it, in [`Spec::incoming`], instead of booting.
    pub migrates_from: Option<PathBuf>,
    /// Whether it has an IOMMU, without which there are no interrupts from that device.
    pub iommu: bool,
    /// It is ended after so long, whatever happens.
    pub limit: Duration,
    /// Politeness of its QEMU.
    pub nice: u8,
    /// A file that it has as persistent memory, and its size in bytes.
    pub persistent: Option<(PathBuf, u64)>,
    /// More options for QEMU.
    pub more: Vec<String>,
}

impl Spec {
    /// A guest that has nothing but a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            contents: Contents::default(),
            memory: 256,
            address: None,
            network: Network::None,
            region: None,
            vectors: 0,
            pluggable: false,
            migrates_from: None,
            iommu: true,
            limit: Duration::from_secs(300),
            nice: 5,
            persistent: None,
            more: Vec::new(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The socket at which a guest that is to be migrated here is awaited.
    pub fn incoming(&self) -> PathBuf {
        self.file("incoming")
    }

    /// Where it was booted: what names it and gives it its address.
    fn origin(&self) -> &Path {
        self.migrates_from.as_ref().unwrap_or(&self.directory)
    }

    fn arguments(&self, kernel: &Kernel) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut line = KERNEL.to_owned();
        let name = self.origin().file_name().unwrap_or_default();
        line += &format!(" viaduct.name={}", name.to_string_lossy());
        if let Some(address) = &self.address {
            line += &format!(" viaduct.address={address}");
        }
        if self.iommu {
            line += " intel_iommu=on";
        }
        let mut arguments: Vec<String> = [
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-smp",
            "1,maxcpus=2",
            "-cpu",
            "qemu64,+rdrand",
            "-nodefaults",
            "-nographic",
            "-no-reboot",
        ]
        .map(str::to_owned)
        .into();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        // Persistent memory takes a slot.
        let slots = self
            .persistent
            .as_ref()
            .map_or("", |_| ",slots=1,maxmem=8G");
        add("-m", format!("{}{slots}", self.memory));
        add("-kernel", path(&kernel.image()));
        add("-initrd", path(&self.file("initramfs")));
        add("-append", line);
        let qmp = path(&self.file("qmp"));
        add("-qmp", format!("unix:{qmp},server=on,wait=off"));
        add("-pidfile", path(&self.file("pid")));
        add(
            "-serial",
            format!("file:{}", path(&self.file("console.log"))),
        );
        // Must come before the devices that it is for.
        if self.iommu {
            add("-device", "intel-iommu,intremap=on".to_owned());
        }
        let control = path(&self.file("control"));
        add(
            "-chardev",
            format!("socket,id=control,path={control},server=on,wait=off"),
        );
        add("-device", "virtio-serial-pci".to_owned());
        add(
            "-device",
            "virtserialport,chardev=control,name=control".to_owned(),
        );
        let net = match &self.network {
            Network::None => None,
            Network::Tap(interface) => Some(format!(
                "tap,id=net,ifname={interface},script=no,downscript=no"
            )),
            Network::Listen(at) => {
                let at = path(at);
                Some(format!(
                    "stream,id=net,server=on,addr.type=unix,addr.path={at}"
                ))
            }
            Network::Connect(at) => {
                let at = path(at);
                Some(format!(
                    "stream,id=net,server=off,addr.type=unix,addr.path={at}"
                ))
            }
        };
        if let Some(net) = net {
            add("-netdev", net);
            add(
                "-device",
                format!("virtio-net-pci,netdev=net,mac={},romfile=", self.mac()),
            );
        }
        if self.pluggable {
            add(
                "-device",
                "pcie-root-port,id=plug,pref64-reserve=256M".to_owned(),
            );
        }
        if let Some(region) = &self.region {
            add(
                "-chardev",
                format!("socket,id=region,path={}", path(region)),
            );
            let mut device = format!(
                "ivshmem-doorbell,id=region,chardev=region,vectors={}",
                self.vectors
            );
            if self.pluggable {
                device += ",bus=plug";
            }
            add("-device", device);
        }
        if let Some((file, bytes)) = &self.persistent {
            let file = path(file);
            add(
                "-object",
                format!("memory-backend-file,id=cached,mem-path={file},share=on,size={bytes}"),
            );
            add("-device", "virtio-pmem-pci,memdev=cached".to_owned());
        }
        if self.migrates_from.is_some() {
            let incoming = path(&self.incoming());
            add("-incoming", format!("unix:{incoming}"));
        }
        arguments.extend(self.more.iter().cloned());
        arguments
    }

    /// An address of its own on the network, made of its name and its IP address.
    fn mac(&self) -> String {
        let what = format!("{} {:?}", self.origin().display(), self.address);
        let sum = what.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [one, two, three, ..] = sum.to_le_bytes();
        format!("52:54:00:{one:02x}:{two:02x}:{three:02x}")
    }
}

/// A guest that runs. It is ended when this is dropped.
#[derive(Debug)]
pub struct Guest {
    directory: PathBuf,
    /// `timeout`, and QEMU below it.
    child: Option<Child>,
    control: Option<Control>,
}

impl Guest {
    /// Boots one and waits until it takes commands.
    ///
    /// # Errors
    /// It does not come up; the message ends with what its console says.
    pub fn boot(kernel: &Kernel, spec: &Spec) -> Result<Self> {
        let mut guest = Self::start(kernel, spec)?;
        guest.wait()?;
        Ok(guest)
    }

    /// Starts one; [`Guest::wait`] waits for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(kernel: &Kernel, spec: &Spec) -> Result<Self> {
        fs::create_dir_all(&spec.directory)?;
        for old in ["control", "qmp", "pid", "console.log", "incoming"] {
            let _ = fs::remove_file(spec.file(old));
        }
        spec.contents.write(kernel, &spec.file("initramfs"))?;
        let log = File::create(spec.file("qemu.log"))?;
        // `timeout` ends it even if we are killed. In a process group of its own, so that an interrupt from the
        // keyboard is for us to handle.
        let child = Command::new("timeout")
            .arg("--kill-after=5")
            .arg(spec.limit.as_secs().to_string())
            .args(["nice", "-n", &spec.nice.to_string(), "qemu-system-x86_64"])
            .args(spec.arguments(kernel))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting QEMU")?;
        Ok(Self {
            directory: spec.directory.clone(),
            child: Some(child),
            control: None,
        })
    }

    /// Waits until it takes commands.
    ///
    /// # Errors
    /// It does not come up.
    pub fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while self.control.is_none() {
            if Instant::now() > deadline || !self.is_alive() {
                return Err(self.describe(&anyhow!("it does not start")));
            }
            self.control = Control::connect(&self.directory.join("control")).ok();
            thread::sleep(Duration::from_millis(10));
        }
        self.run_within("true", BOOT_LIMIT).map(drop)
    }

    /// The guest that somebody else has started in `directory`; dropping this does not end it.
    ///
    /// # Errors
    /// There is none.
    pub fn of(directory: &Path) -> Result<Self> {
        let control = Control::connect(&directory.join("control"))
            .with_context(|| format!("no guest in {}", directory.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            child: None,
            control: Some(control),
        })
    }

    /// Goes on without us, until [`Guest::end`] or its limit.
    pub fn leave_running(mut self) {
        self.child = None;
    }

    /// Runs a command in a shell and waits for its end.
    ///
    /// # Errors
    /// It did not end in time, or the guest is gone. The status of the command is no error.
    pub fn run_within(&mut self, command: &str, limit: Duration) -> Result<Said> {
        let control = self.control.as_mut().context("the guest is not up")?;
        let said = control.run(command, limit);
        said.map_err(|error| self.describe(&error))
    }

    /// Runs a command that must succeed; what it says.
    ///
    /// # Errors
    /// It failed, or as [`Guest::run_within`].
    pub fn run(&mut self, command: &str) -> Result<String> {
        let said = self.run_within(command, COMMAND_LIMIT)?;
        if said.status != 0 {
            let name = self.name();
            let (out, err) = (said.text(), String::from_utf8_lossy(&said.err).into_owned());
            bail!(
                "guest {name}: status {}: {command}\n{out}{err}",
                said.status
            );
        }
        Ok(said.text())
    }

    /// Starts a command that goes on; what it says comes into `/tmp/NAME.log`, its number into `/tmp/NAME.pid`.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn spawn(&mut self, name: &str, command: &str) -> Result<()> {
        let script = format!("{command} >/tmp/{name}.log 2>&1 & echo $! >/tmp/{name}.pid");
        self.run(&script).map(drop)
    }

    /// Waits until a command succeeds.
    ///
    /// # Errors
    /// It never did, or as [`Guest::run`].
    pub fn until(&mut self, condition: &str) -> Result<()> {
        let script = format!(
            "i=0; until {condition}; do i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.1; done"
        );
        self.run(&script).map(drop)
    }

    /// Says something to its QEMU, and what that answers.
    ///
    /// # Errors
    /// It does not answer, or not with a result.
    pub fn tell_qemu(&self, command: &str, arguments: &Value) -> Result<Value> {
        self.monitor()?.ask(command, arguments)
    }

    /// The monitor of its QEMU.
    ///
    /// # Errors
    /// It does not answer.
    pub fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.directory.join("qmp"), COMMAND_LIMIT)
    }

    /// The process of its QEMU.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<i32> {
        let text =
            fs::read_to_string(self.directory.join("pid")).context("QEMU has not started")?;
        Ok(text.trim().parse()?)
    }

    /// Whether its QEMU still runs.
    pub fn is_alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => true,
        }
    }

    /// What its console has said.
    pub fn console(&self) -> String {
        let text = fs::read(self.directory.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Ends it at once.
    pub fn end(&mut self) {
        if let Ok(pid) = self.pid()
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = fs::remove_file(self.directory.join("pid"));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    fn name(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn describe(&self, error: &anyhow::Error) -> anyhow::Error {
        let log = fs::read_to_string(self.directory.join("qemu.log")).unwrap_or_default();
        let console = self.console();
        let lines: Vec<_> = console.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(20)..)
            .unwrap_or_default();
        anyhow!("guest {}: {error:#}\n{log}{}", self.name(), tail.join("\n"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.end();
        }
    }
}

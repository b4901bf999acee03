# shellcheck shell=bash
# What a bare Debian lacks for building and measuring. Sourced after lib.sh, never run.

netperf_list=/etc/apt/sources.list.d/viaduct-netperf.list
sources_list=/etc/apt/sources.list.d/viaduct-sources.list

find_cargo() {
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    need_cmd cargo "install Rust 1.95 or newer, for example by https://rustup.rs"
}

install_packages() {
    local missing=()
    have cc || missing+=(gcc)
    [[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
    have ip || missing+=(iproute2)
    # cargo fetches crates by HTTPS.
    [[ -e /etc/ssl/certs/ca-certificates.crt || -e /etc/ssl/cert.pem ]] ||
        missing+=(ca-certificates)
    # For the lettering of the PNG.
    have_font || missing+=(fonts-dejavu-core)
    if [[ ${#missing[@]} -gt 0 ]]; then
        apt_install "${missing[@]}"
    fi
}

have_font() {
    local found
    found=$(find -L /usr/share/fonts /usr/local/share/fonts -name DejaVuSans.ttf -print -quit \
        2>/dev/null) || true
    [[ -n $found ]]
}

install_netperf() {
    if have netperf netserver; then
        return
    fi
    have apt-get || die "netperf not found: install your distribution's netperf package"
    apt_update_once
    if ! netperf_candidate; then
        enable_non_free
        netperf_candidate ||
            die "still no netperf package: see what apt-get said above, and $netperf_list"
    fi
    apt_install netperf
    # Debian starts a netserver that listens on all addresses; the comparison starts its own.
    if [[ -d /run/systemd/system ]]; then
        say "stopping the netserver that the package has started"
        as_root systemctl disable --now netperf
    fi
    have netperf netserver || die "netperf is installed but not in PATH"
}

# QEMU, and what the file systems of guests are made with.
install_qemu() {
    local missing=()
    have qemu-system-x86_64 || missing+=(qemu-system-x86)
    have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || missing+=(busybox-static)
    [[ -x /usr/sbin/depmod || -x /sbin/depmod ]] || missing+=(kmod)
    have strip || missing+=(binutils)
    have lz4 || missing+=(lz4)
    have xz || missing+=(xz-utils)
    have zstd || missing+=(zstd)
    if [[ ${#missing[@]} -gt 0 ]]; then
        apt_install "${missing[@]}"
    fi
    # The kernel's package is looked up in the lists.
    apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || apt_update_once
}

netperf_candidate() {
    local policy
    policy=$(LC_ALL=C apt-cache policy netperf)
    [[ $policy == *'Candidate: '[!\(]* ]]
}

# Adds Debian's non-free beside the main that is configured already.
enable_non_free() {
    local where
    where=$(debian_main) ||
        die "netperf not found: install it from your distribution (Ubuntu: enable multiverse first)"
    add_entry "$netperf_list" "netperf, for scripts/demo of Viaduct" "deb $where non-free"
}

# debian_source PACKAGE DIRECTORY: the source of a Debian package, unpacked there.
debian_source() {
    local where
    have dpkg-source || apt_install dpkg-dev
    if ! has_sources; then
        where=$(debian_main) || die "no Debian: get the source of $1 by hand, unpack it in $2"
        add_entry "$sources_list" "sources, for scripts/suites of Viaduct" "deb-src $where main"
    fi
    say "getting the source of $1"
    rm -rf "$2.part"
    mkdir -p "$2.part"
    # Debian's own patches are applied; the user that apt drops to could not write here.
    (cd -- "$2.part" && apt-get -qq -o APT::Sandbox::User=root source "$1") || return 1
    mv -- "$2.part"/*/ "$2" && rm -rf "$2.part"
}

has_sources() {
    # shellcheck disable=SC2016 # apt-get expands it.
    [[ -n $(apt-get indextargets --format '$(SITE)' 'Created-By: Sources' 'Component: main') ]]
}

# add_entry FILE WHY LINE: one more file of apt's, and the lists read again.
add_entry() {
    say "adding $1:"
    say "    $3"
    printf '%s\n' "# $2. May be removed." "$3" | as_root tee "$1" >/dev/null
    apt_update
}

# debian_main: where main comes from, as it stands in a line of sources.list between the type and the
# components: with the same address, the same suite, and the same Signed-By, because apt refuses two
# entries that differ in it.
debian_main() {
    local id='' codename='' site suite entry signed_by
    # shellcheck source=/dev/null
    id=$(. /etc/os-release && printf '%s' "${ID:-}")
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    [[ $id == debian && -n $codename ]] || return 1

    # One line: site, suite, and the file that configures them.
    IFS='|' read -r site suite entry < <(
        # shellcheck disable=SC2016 # apt-get expands these.
        apt-get indextargets --format '$(SITE)|$(RELEASE)|$(SOURCESENTRY)|$(CODENAME)' \
            'Created-By: Packages' 'Component: main' |
            awk -F'|' -v name="$codename" '
                $2 == name || $4 == name { print $1 "|" $2 "|" $3; exit }'
    ) || die "no apt source for $codename main found; add one"

    entry=${entry%:*}
    signed_by=$(signed_by_of "$entry" "$site" "$suite")
    case $signed_by in
        '') echo "$site $suite" ;;
        /*) echo "[signed-by=$signed_by] $site $suite" ;;
        *) die "$entry has its key inline: add what is missing to it by hand, start again" ;;
    esac
}

# signed_by_of FILE SITE SUITE: the Signed-By of that entry, or nothing.
signed_by_of() {
    case $1 in
        *.sources)
            awk -v site="$2" -v suite="$3" '
                BEGIN { RS = ""; FS = "\n" }
                {
                    uris = suites = signed = key = ""
                    for (i = 1; i <= NF; i++) {
                        line = $i
                        if (line ~ /^#/) continue
                        if (line !~ /^[ \t]/) {
                            key = tolower(line); sub(/:.*/, "", key)
                            sub(/^[^:]*:[ \t]*/, "", line)
                        }
                        sub(/^[ \t]+/, "", line)
                        if (key == "uris") uris = uris " " line
                        if (key == "suites") suites = suites " " line
                        if (key == "signed-by") signed = signed line
                    }
                    gsub(/\/( |$)/, " ", uris)
                    if (index(uris " ", " " site " ") && index(suites " ", " " suite " ")) {
                        print signed; exit
                    }
                }' "$1"
            ;;
        *)
            awk -v site="$2" -v suite="$3" '
                /^[ \t]*deb[ \t]/ && index($0, site) && index($0 " ", " " suite " ") {
                    if (match($0, /signed-by=[^] \t]+/))
                        print substr($0, RSTART + 10, RLENGTH - 10)
                    exit
                }' "$1"
            ;;
    esac
}

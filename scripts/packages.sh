# shellcheck shell=bash
# What a bare Debian lacks for building and measuring. Sourced after lib.sh, never run.

netperf_list=/etc/apt/sources.list.d/viaduct-netperf.list

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

netperf_candidate() {
    local policy
    policy=$(LC_ALL=C apt-cache policy netperf)
    [[ $policy == *'Candidate: '[!\(]* ]]
}

# Adds Debian's non-free beside the main that is configured already: the same address, the same
# suite, and the same Signed-By, because apt refuses two entries that differ in it.
enable_non_free() {
    local id='' codename='' site suite entry signed_by line
    # shellcheck source=/dev/null
    id=$(. /etc/os-release && printf '%s' "${ID:-}")
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    [[ $id == debian && -n $codename ]] ||
        die "netperf not found: install it from your distribution (Ubuntu: enable multiverse first)"

    # One line: site, suite, and the file that configures them.
    IFS='|' read -r site suite entry < <(
        # shellcheck disable=SC2016 # apt-get expands these.
        apt-get indextargets --format '$(SITE)|$(RELEASE)|$(SOURCESENTRY)|$(CODENAME)' \
            'Created-By: Packages' 'Component: main' |
            awk -F'|' -v name="$codename" '
                $2 == name || $4 == name { print $1 "|" $2 "|" $3; exit }'
    ) || die "no apt source for $codename main found; add one with: main non-free"

    entry=${entry%:*}
    signed_by=$(signed_by_of "$entry" "$site" "$suite")
    case $signed_by in
        '') line="deb $site $suite non-free" ;;
        /*) line="deb [signed-by=$signed_by] $site $suite non-free" ;;
        *) die "$entry has its key inline: add non-free to its Components by hand, start again" ;;
    esac
    say "adding Debian's non-free, for netperf: $netperf_list"
    say "    $line"
    printf '%s\n' '# netperf, for scripts/demo of Viaduct. May be removed.' "$line" |
        as_root tee "$netperf_list" >/dev/null
    apt_update
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

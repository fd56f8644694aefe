# What the two scripts that boot a guest share: options, the initial file system, the job.
# Sourced by them; sets and reads their variables.

# directory, memory_mib, limit_s and command from the arguments of the script.
parse_arguments() {
    directory=$PWD memory_mib=1024 limit_s=300
    while getopts d:m:t: option; do
        case $option in
            d) directory=$(realpath "$OPTARG") ;;
            m) memory_mib=$OPTARG ;;
            t) limit_s=$OPTARG ;;
            *) usage ;;
        esac
    done
    shift $((OPTIND - 1))
    [ $# -gt 0 ] || usage
    command=("$@")
}

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# Unpacks Debian packages below $cache/root, without installing them.
fetch_packages() {
    mkdir -p "$cache/packages" "$cache/root"
    # As a user of its own apt could not write here, and would say so at length.
    (cd "$cache/packages" && apt-get download -qq -o APT::Sandbox::User=root "$@")
    for package in "$cache"/packages/*.deb; do dpkg-deb -x "$package" "$cache/root"; done
}

# Makes $cache/initrd.gz of busybox, the guest's init, and the kernel modules below directory $1.
make_initrd() {
    local tree=$cache/initrd
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,modules,proc,dev,host,upper,new}
    cp "$cache/root/bin/busybox" "$tree/bin/"
    cp "$here/vm/guest-init" "$tree/init"
    chmod +x "$tree/init"
    local module
    for module in $(sed -n '/^for module/,/do$/p' "$here/vm/guest-init" | grep -oE '[a-z0-9_]+'); do
        find "$1" -name "$module.ko*" -exec cp {} "$tree/modules/" \;
    done
    find "$tree/modules" -name '*.xz' -exec xz -dq {} +
    (cd "$tree" && find . | bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) > "$cache/initrd.gz"
}

# Sets $work up: the job's settings (from standard input), its command with this environment, and
# the script $1 that runs it in the guest; packed behind the initial file system.
make_job() {
    mkdir "$work/job"
    { printf 'DIRECTORY=%q\n' "$directory"; cat; } > "$work/job/settings"
    {
        export -p | grep -E '^declare -x [A-Za-z_0-9]+=' |
            grep -vE ' (OLDPWD|PWD|SHLVL|_)=' | sed 's/^declare -x/export/'
        printf 'cd %q\nexec' "$directory"
        printf ' %q' "${command[@]}"
        echo
    } > "$work/job/command"
    printf '%s\n' "$1" > "$work/job/run"
    (cd "$work" && find job | "$cache/root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) |
        cat "$cache/initrd.gz" - > "$work/initrd"
    truncate -s 2G "$work/scratch"
    # With project quotas, for the bounds of volumes.
    mke2fs -q -F -t ext4 -O quota,project \
        -E quotatype=prjquota,lazy_itable_init=1,lazy_journal_init=1 "$work/scratch"
}

# Ends the script with the guest's exit code from file $1, if there is one; else says what went
# wrong: $2 is the exit code of the virtual machine itself, the rest are logs.
finish() {
    local code result=$1 machine=$2
    shift 2
    code=$(sed -n 's/^code=\([0-9]*\).*/\1/p' "$result" 2>/dev/null || true)
    [ -z "$code" ] || exit "$code"
    if [ "$machine" = 124 ]; then
        echo "$(basename "$0"): over $limit_s s" >&2
        exit 124
    fi
    tail -n 40 "$@" >&2 || true
    exit 125
}

"""What a session finds around Python: a shell, the usual tools, certificates, time zones, an /etc of its own."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

from kernelpool.backends.tree.hostfiles import copy_host_directory, copy_host_file, copy_merged_links, inside
from kernelpool.backends.tree.libraries import SYSTEM_PATH
from kernelpool.models import WORKSPACE

SANDBOX_UID = 65532

# Those that the host has are copied. Nothing that is only useful with rights that a session never has.
_TOOLS = """
    bash sh env which getent locale ldd
    arch b2sum base32 base64 basename basenc cat chmod chgrp chown cksum comm cp csplit cut date dd df dir dircolors
    dirname du echo expand expr factor false fmt fold groups head hostid id install join link ln logname ls md5sum mkdir
    mkfifo mknod mktemp mv nice nl nohup nproc numfmt od paste pathchk pr printenv printf ptx pwd readlink realpath rm
    rmdir seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat stdbuf stty sum sync tac
    tail tee test [ timeout touch tr true truncate tsort tty uname unexpand uniq unlink users vdir wc who whoami yes
    find xargs grep egrep fgrep sed awk gawk mawk diff diff3 cmp sdiff patch
    tar gzip gunzip zcat zgrep bzip2 bunzip2 bzcat xz unxz xzcat lzma unlzma zstd unzstd zstdcat zip unzip zipinfo
    ps pgrep pkill kill pidof top free uptime vmstat watch hostname
    column hexdump xxd rev getopt flock setsid uuidgen lscpu more less clear tput reset file
    bc dc jq tree rsync curl wget git openssl sqlite3
"""
TOOLS = tuple(_TOOLS.split())

# Files that a tool or library opens by name.
DATA = (
    *("/etc/magic", "/usr/share/misc/magic.mgc", "/usr/lib/file/magic.mgc", "/usr/share/file/magic.mgc"),
    *(f"/usr/lib/git-core/{name}" for name in ("git-remote-http", "git-remote-https", "git-submodule")),
    *(f"/usr/lib/git-core/{name}" for name in ("git-sh-setup", "git-sh-i18n", "git-sh-i18n--envsubst")),
    *(f"/usr/libexec/git-core/{name}" for name in ("git-remote-http", "git-remote-https", "git-submodule")),
    *(f"/usr/libexec/git-core/{name}" for name in ("git-sh-setup", "git-sh-i18n", "git-sh-i18n--envsubst")),
    *("/usr/lib/bash/sleep", "/usr/libexec/coreutils/libstdbuf.so"),
    *(
        f"{folder}/{name[0]}/{name}"
        for folder in ("/lib/terminfo", "/usr/share/terminfo")
        for name in ("ansi", "dumb", "linux", "screen", "screen-256color", "tmux", "vt100", "xterm", "xterm-256color")
    ),
)

DIRECTORIES = (
    "/usr/share/zoneinfo",
    "/usr/lib/locale/C.utf8",
    "/usr/lib/locale/C.UTF-8",
    "/usr/share/git-core/templates",
)
_WITHOUT = frozenset({"right", "posix", "localtime", "posixrules", "hooks"})

# Debian and its kin, Fedora and its kin, and what OpenSSL itself takes.
BUNDLES = (
    *("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),
    *("/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"),
)
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

MOUNT_POINTS = ("/proc", "/sys", "/dev", "/tmp", "/run", WORKSPACE, "/opt/kernelpool", "/etc", "/root", "/var")  # noqa: S108

ETC = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        f"sandbox:x:{SANDBOX_UID}:{SANDBOX_UID}:sandbox:{WORKSPACE}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
    "group": f"root:x:0:\nsandbox:x:{SANDBOX_UID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "resolv.conf": "",  # a backend with egress binds its own over it
    "host.conf": "multi on\n",
    "timezone": "Etc/UTC\n",
    "os-release": 'NAME="kernelpool sandbox"\nID=kernelpool\nPRETTY_NAME="kernelpool sandbox"\n',
    "services": "ftp 21/tcp\nssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\nhttps 443/udp\n",
    "protocols": "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n",
}


def copy_userland(root: Path) -> None:
    """All but the libraries, which follow when everything that needs some is in place."""
    copy_merged_links(root)
    for path in MOUNT_POINTS:
        inside(root, path).mkdir(parents=True, exist_ok=True)
    for name, text in ETC.items():
        (root / "etc" / name).write_text(text)
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    (root / "var/tmp").symlink_to("/tmp")  # noqa: S108
    (root / "var/run").symlink_to("/run")
    for tool in TOOLS:
        if program := shutil.which(tool, path=SYSTEM_PATH):
            copy_host_file(root, Path(program))
    for file in DATA:
        if os.path.isfile(file):
            copy_host_file(root, Path(file))
    for directory in DIRECTORIES:
        if os.path.isdir(directory):
            copy_host_directory(root, Path(directory), without=_WITHOUT)
    _copy_certificates(root)


def _copy_certificates(root: Path) -> None:
    """One bundle, and a link at each place where a TLS library of the tree looks without being told."""
    bundles = [path for path in BUNDLES if os.path.isfile(path)]
    if not bundles:
        return
    inside(root, BUNDLE).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundles[0], inside(root, BUNDLE))
    asked = ssl.get_default_verify_paths().openssl_cafile
    for path in {*bundles, "/usr/lib/ssl/cert.pem", asked} - {BUNDLE}:
        if path.startswith(("/etc/", "/usr/lib/")):
            link = inside(root, path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(BUNDLE)

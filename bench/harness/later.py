"""Programs of a later Debian: unpacked into a folder of the lab's and run from there, not installed.

The packages come from the mirror that apt is configured for; apt checks their signatures and keeps what it knows of them in the folder,
so the machine's package state is not touched. What was unpacked stays as it is: delete the folder to have newer ones.
"""
import glob
import os
import shutil

from harness.process import Failed, run

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpack(lab, packages, suite="sid"):
    """Returns the folder in which the packages' files are as they would be in /."""
    root = os.path.join(lab, suite)
    missing = [name for name in packages if not os.path.exists(f"{root}/unpacked/{name}")]
    if missing:
        new = f"{root}.new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            for deb in _download(new, missing, suite):
                run(["dpkg", "-x", deb, root])
            os.makedirs(f"{root}/unpacked", exist_ok=True)
            for name in missing:
                open(f"{root}/unpacked/{name}", "w").close()
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return root


def path(root):
    """Returns a PATH on which its programs come first."""
    return os.pathsep.join([f"{root}/usr/bin", f"{root}/usr/sbin", os.environ["PATH"]])


def _download(home, packages, suite):
    for folder in ("state/lists/partial", "archives/partial", "debs"):
        os.makedirs(f"{home}/{folder}")
    open(f"{home}/status", "w").close()
    with open(f"{home}/sources.list", "w") as sources:
        sources.write(f"deb [signed-by={KEYS}] {_mirror()} {suite} main\n")
    # A mirror may have stopped moving before this machine's clock did: its index has expired, and is signed all the same.
    options = {"Dir::Etc::sourcelist": f"{home}/sources.list", "Dir::Etc::sourceparts": "-", "Dir::State": f"{home}/state",
               "Dir::State::status": f"{home}/status", "Dir::Cache": home, "APT::Sandbox::User": "root", "APT::Update::Error-Mode": "any",
               "Acquire::Languages": "none", "Acquire::Retries": "3", "Acquire::Check-Valid-Until": "false"}
    apt = ["apt-get", "-q"] + [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    run([*apt, "update"])
    run([*apt, "download", *packages], cwd=f"{home}/debs")
    return glob.glob(f"{home}/debs/*.deb")


def _mirror():
    """Returns the first place that apt has Debian itself from."""
    targets = run(["apt-get", "indextargets", "--format", "$(LABEL) $(COMPONENT) $(SITE)", "Created-By: Packages"])
    for line in targets.splitlines():
        label, component, site = line.split()[:3]
        if (label, component) == ("Debian", "main"):
            return site
    raise Failed("apt is not configured for Debian's main archive; add it to its sources")

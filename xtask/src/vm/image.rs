//! A kernel out of a Debian package, and the first file system that it sees.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{ROOT, SHARED, read};
use crate::shell::{self, command};

/// An unpacked package.
pub struct Kernel {
    folder: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }
}

/// Fetches and unpacks the package, unless it is there: a folder for each version.
pub fn fetch(folder: &Path, package: &str) -> Result<Kernel> {
    let package = image_of(package)?;
    let folder = folder.join(&package);
    if !folder.join("lib/modules").exists() {
        let part = folder.with_extension("part");
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part)?;
        let mut download = command("apt-get");
        shell::long(
            &format!("fetching {package}"),
            download.args(["-q", "download", &package]).current_dir(&part),
        )?;
        let archive = fs::read_dir(&part)?.next().context("apt-get download left nothing")??.path();
        shell::run(command("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
        fs::remove_file(archive)?;
        fs::rename(&part, &folder)?;
    }
    let release = fs::read_dir(folder.join("lib/modules"))?.next();
    let release = release.with_context(|| format!("{package} has no modules"))??.file_name();
    let kernel = Kernel { release: release.to_string_lossy().into_owned(), folder };
    ensure!(kernel.image().exists(), "{package} has no {}", kernel.image().display());
    Ok(kernel)
}

/// `linux-image-amd64` has no kernel, but depends on the package that has the newest one.
fn image_of(package: &str) -> Result<String> {
    let depends = read(command("apt-cache").args(["depends", "--no-recommends", "--no-suggests", package]))?;
    let depends = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let image = depends.map(str::trim).find(|name| name.starts_with("linux-image-"));
    match image {
        Some(image) => Ok(image.to_owned()),
        None if package.starts_with("linux-image-") => Ok(package.to_owned()),
        None => bail!("{package} is no kernel: a package such as linux-image-amd64 is wanted"),
    }
}

/// What the kernel needs to reach this machine's files, and to write over them.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Mounts this machine's root with a memory file system over it, and goes there.
fn init() -> String {
    format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin\n\
         busybox mount -t proc proc /proc\n\
         busybox mount -t sysfs sys /sys\n\
         busybox mount -t devtmpfs dev /dev\n\
         for module in /modules/*; do busybox insmod $module; done\n\
         busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro {ROOT} /low\n\
         busybox mount -t tmpfs -o size=75% over /over\n\
         busybox mkdir /over/files /over/work\n\
         busybox mount -t overlay -o lowerdir=/low,upperdir=/over/files,workdir=/over/work over /new\n\
         for one in proc sys dev; do busybox mount --move /$one /new/$one; done\n\
         busybox mkdir -p /new/shared\n\
         busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576 {SHARED} /new/shared\n\
         busybox cp /start /new/start\n\
         exec busybox switch_root /new /bin/sh /start\n"
    )
}

/// The first process of the virtual machine.
const START: &str = "\
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ip link set lo up
hostname vm
ulimit -n 65536
uname -srv
sh /shared/run
echo $? > /shared/status
sync
echo o > /proc/sysrq-trigger
sleep 60
";

/// Packs busybox, the modules and the two scripts.
pub fn initrd(folder: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let staged = folder.join("initrd");
    let _ = fs::remove_dir_all(&staged);
    for name in ["bin", "modules", "proc", "sys", "dev", "low", "over", "new"] {
        fs::create_dir_all(staged.join(name))?;
    }
    fs::copy("/bin/busybox", staged.join("bin/busybox")).context("busybox")?;
    shell::run(command("depmod").arg("-b").arg(&kernel.folder).arg(&kernel.release))?;
    let mut known = Vec::new();
    for module in MODULES {
        let mut depends = command("modprobe");
        depends.args(["--show-depends", "-S", &kernel.release, "-d"]).arg(&kernel.folder).arg(module);
        for file in read(&mut depends)?.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = PathBuf::from(file.trim());
            if !known.contains(&file) {
                known.push(file);
            }
        }
    }
    for (nth, file) in known.iter().enumerate() {
        let name = file.file_name().context("a module without a name")?.to_string_lossy();
        fs::copy(file, staged.join(format!("modules/{nth:02}-{name}")))?;
    }
    fs::write(staged.join("init"), init())?;
    fs::write(staged.join("start"), START)?;
    let packed = folder.join("initrd.cpio");
    let pack = "chmod +x init && find . | cpio --quiet -o -H newc > ../initrd.cpio";
    shell::run(command("sh").args(["-c", pack]).current_dir(&staged))?;
    Ok(packed)
}

//! The `bpf(2)` commands that the bench makes by itself: aya loads programs from objects only, and runs no live frames.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

// `enum bpf_cmd`, `bpf_map_type`, `bpf_prog_type` and `bpf_attach_type` of include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_ENABLE_STATS: libc::c_long = 32;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Which way packets go that a tcx program sees.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    In,
    Out,
}

/// Name of every program of the bench.
pub const PROGRAM: &[u8; 16] = b"pc_bench\0\0\0\0\0\0\0\0";

/// An array map with one value, which a program addresses directly.
pub fn array_of_one(value: &[u8]) -> Result<OwnedFd> {
    map_of_one(BPF_MAP_TYPE_ARRAY, value)
}

/// What a tail call goes to. The kernel empties it when the last descriptor of it is closed.
pub fn tail(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    map_of_one(BPF_MAP_TYPE_PROG_ARRAY, &program.as_raw_fd().to_ne_bytes())
}

fn map_of_one(map_type: u32, value: &[u8]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let value_size = u32::try_from(value.len())?;
    let mut create = Create { map_type, key_size: 4, value_size, max_entries: 1 };
    let map = owned(bpf(BPF_MAP_CREATE, &mut create).context("making a map of one entry")?)?;
    set_one(map.as_fd(), value)?;
    Ok(map)
}

/// Writes the only value of a map, which has to be as long as that.
pub fn set_one(map: BorrowedFd<'_>, value: &[u8]) -> Result<()> {
    #[repr(C)]
    struct Update {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0u32;
    let mut update = Update {
        map_fd: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: value.as_ptr().expose_provenance() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut update).context("filling a map of one entry")?;
    Ok(())
}

/// Loads an XDP program; an error carries the verifier's log.
pub fn load_xdp(instructions: &[u64]) -> Result<OwnedFd> {
    load(instructions, (BPF_PROG_TYPE_XDP, BPF_XDP), 0)
}

/// Loads a program for tcx.
pub fn load_tcx(instructions: &[u64]) -> Result<OwnedFd> {
    load(instructions, (BPF_PROG_TYPE_SCHED_CLS, 0), 0)
}

/// The same of a program that takes packets of several buffers, as one has to that hands them to such a program.
pub fn load_xdp_frags(instructions: &[u64]) -> Result<OwnedFd> {
    const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
    load(instructions, (BPF_PROG_TYPE_XDP, BPF_XDP), BPF_F_XDP_HAS_FRAGS)
}

fn load(
    instructions: &[u64],
    (prog_type, expected_attach_type): (u32, u32),
    prog_flags: u32,
) -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let license = CString::from(c"Apache-2.0");
    let mut log = vec![0u8; 1 << 20];
    let mut load = Load {
        prog_type,
        insn_cnt: u32::try_from(instructions.len())?,
        insns: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len())?,
        log_buf: log.as_mut_ptr().expose_provenance() as u64,
        kern_version: 0,
        prog_flags,
        prog_name: *PROGRAM,
        prog_ifindex: 0,
        expected_attach_type,
    };
    match bpf(BPF_PROG_LOAD, &mut load) {
        Ok(fd) => owned(fd),
        Err(error) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            bail!("loading a program of the bench: {error}\n{}", String::from_utf8_lossy(&log[..end]))
        }
    }
}

/// Attaches in the driver; closing the link detaches.
pub fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    attach(program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
}

/// Attaches behind what is there; closing the link detaches.
pub fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, way: Way) -> Result<OwnedFd> {
    let attach_type = match way {
        Way::In => BPF_TCX_INGRESS,
        Way::Out => BPF_TCX_EGRESS,
    };
    attach(program, ifindex, attach_type, 0)
}

fn attach(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32, flags: u32) -> Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
        // The tcx member of the union: no relative program, no expected revision.
        tail: [u64; 2],
    }
    let mut create = Create {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type,
        flags,
        tail: [0; 2],
    };
    owned(bpf(BPF_LINK_CREATE, &mut create).context("attaching a program of the bench")?)
}

/// What is pinned at a path of a bpffs.
pub fn pinned(path: &Path) -> Result<OwnedFd> {
    #[repr(C)]
    struct Get {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = Get { pathname: name.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: 0 };
    owned(bpf(BPF_OBJ_GET, &mut get).with_context(|| format!("opening {}", path.display()))?)
}

/// The program that a link runs now.
pub fn program_of(link: BorrowedFd<'_>) -> Result<OwnedFd> {
    // `struct bpf_link_info` begins with type, id and prog_id.
    let mut found = [0u32; 3];
    info(link, &mut found)?;
    #[repr(C)]
    struct ById {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut by_id = ById { id: found[2], next_id: 0, open_flags: 0 };
    owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id).context("opening the program of a link")?)
}

/// Puts another program on a link, from one packet to the next.
pub fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    #[repr(C)]
    struct Update {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut update = Update {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut update).context("replacing the program of a link").map(drop)
}

/// Takes a link's program off its interface. The link stays, and does nothing any more.
pub fn detach(link: BorrowedFd<'_>) -> Result<()> {
    let mut link = link.as_raw_fd().cast_unsigned();
    bpf(BPF_LINK_DETACH, &mut link).context("detaching a link").map(drop)
}

/// Makes the kernel time every run of a program, until this is closed.
pub fn count_run_time() -> Result<OwnedFd> {
    const BPF_STATS_RUN_TIME: u32 = 0;
    let mut kind = BPF_STATS_RUN_TIME;
    owned(bpf(BPF_ENABLE_STATS, &mut kind).context("timing programs")?)
}

/// Nanoseconds that a program has run while they were counted.
pub fn run_time(program: BorrowedFd<'_>) -> Result<u64> {
    /// Bytes of `struct bpf_prog_info` up to `run_time_ns`, which lies behind 25 words of which some are halves of pointers.
    const RUN_TIME_AT: usize = 192;
    let mut found = [0u8; RUN_TIME_AT + 8];
    info(program, &mut found)?;
    let (_, time) = found.split_at(RUN_TIME_AT);
    Ok(u64::from_ne_bytes(time.try_into()?))
}

/// The beginning of what the kernel says of a descriptor.
fn info<T>(fd: BorrowedFd<'_>, into: &mut T) -> Result<()> {
    #[repr(C)]
    struct Info {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut attr = Info {
        bpf_fd: fd.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<T>())?,
        info: std::ptr::from_mut(into).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).context("asking what a descriptor is").map(drop)
}

/// A socket that hears every frame that comes to an interface of the calling thread's namespace, and sends frames out of it.
pub fn frames_of(ifindex: u32) -> Result<OwnedFd> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("making a packet socket");
    }
    // SAFETY: the kernel has just made this descriptor for the caller.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (on, size): (libc::c_int, libc::socklen_t) = (1, 4);
    // What is sent through it is not to come back.
    // SAFETY: the option's value is an int, of the size given.
    let ignored = unsafe {
        libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, (&raw const on).cast(), size)
    };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: every,
        sll_ifindex: i32::try_from(ifindex)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: the address is a whole `sockaddr_ll`, of the size given.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if ignored != 0 || bound != 0 {
        return Err(io::Error::last_os_error()).context("listening to an interface");
    }
    Ok(socket)
}

/// Runs a program on a frame `repeat` times, and says how many nanoseconds a run took. The program's changes to the frame stay in it
/// from run to run.
pub fn time_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<u32> {
    let mut attr = TestRun::of(program, frame, repeat)?;
    bpf(BPF_PROG_TEST_RUN, &mut attr).context("running a program on a frame")?;
    Ok(attr.duration)
}

/// Sends `count` frames through the kernel: `program` is run on each and its verdict obeyed. Frames are recycled, so the program has
/// to write every byte that is to be right. Devices are those of the calling thread's network namespace.
pub fn run_live(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> Result<()> {
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
    let mut attr = TestRun::of(program, frame, count)?;
    attr.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    bpf(BPF_PROG_TEST_RUN, &mut attr).context("sending live frames").map(drop)
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

impl TestRun {
    fn of(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<Self> {
        Ok(Self {
            prog_fd: program.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr().expose_provenance() as u64,
            repeat,
            ..Self::default()
        })
    }
}

fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is the prefix of `union bpf_attr` that the command reads, of the size given; pointers in
    // it are to memory of the callers that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(fd)?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! The few system calls that no library in use makes: `bpf(2)` commands on links, and two device ioctls.
//!
//! Aya's own attach falls back to netlink when a link cannot be made. That attachment could not be pinned
//! and would end with the process, so links are made here and nowhere else.
#![expect(unsafe_code, reason = "raw system calls")]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// `enum bpf_cmd` and `enum bpf_attach_type` of include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_XDP: u32 = 37;
const BPF_TCX_EGRESS: u32 = 47;

/// Where on an interface a program sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// In the driver, before the kernel allocates anything.
    XdpNative,
    /// In the network stack, for drivers that have no XDP.
    XdpGeneric,
    /// On the way out.
    TcxEgress,
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    pub(super) program_id: u32,
    /// Zero once the interface is gone.
    pub(super) ifindex: u32,
}

/// Attaches a program by a link of its own.
pub(super) fn link_create(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let (attach_type, flags) = match hook {
        Hook::XdpNative => (BPF_XDP, XDP_FLAGS_DRV_MODE),
        Hook::XdpGeneric => (BPF_XDP, XDP_FLAGS_SKB_MODE),
        Hook::TcxEgress => (BPF_TCX_EGRESS, 0),
    };
    // The tail is the tcx member of the union: no relative program, no expected revision.
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
        tcx: [u64; 2],
    }
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let mut attr = Attr { prog_fd, target_ifindex: ifindex, attach_type, flags, tcx: [0; 2] };
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Replaces the program of a link; packets see the old one or the new one, never none.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let link_fd = link.as_raw_fd().cast_unsigned();
    let new_prog_fd = program.as_raw_fd().cast_unsigned();
    bpf(BPF_LINK_UPDATE, &mut Attr { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 }).map(drop)
}

/// Detaches at once, whoever else holds the link.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    bpf(BPF_LINK_DETACH, &mut Attr { link_fd: link.as_raw_fd().cast_unsigned() }).map(drop)
}

pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // `struct bpf_link_info`: the union that begins with the ifindex of xdp and tcx is 8-byte aligned.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        prog_id: u32,
        pad: u32,
        ifindex: u32,
        rest: [u32; 11],
    }
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let info_len = u32::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    let at = (&raw mut info).expose_provenance() as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut Attr { bpf_fd: link.as_raw_fd().cast_unsigned(), info_len, info: at })?;
    Ok(LinkInfo { program_id: info.prog_id, ifindex: info.ifindex })
}

/// Removes the entry of a hash map and gives its value as it was then.
pub(super) fn map_take<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut V,
) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let map_fd = map.as_raw_fd().cast_unsigned();
    let key = std::ptr::from_ref(key).expose_provenance() as u64;
    let value = std::ptr::from_mut(value).expose_provenance() as u64;
    bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut Attr { map_fd, pad: 0, key, value, flags: 0 }).map(drop)
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Gives a BPF object a name on a bpffs, which keeps it alive after every descriptor of it is closed.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let pathname = path.as_ptr().expose_provenance() as u64;
    let bpf_fd = object.as_raw_fd().cast_unsigned();
    bpf(BPF_OBJ_PIN, &mut ObjectAttr { pathname, bpf_fd, file_flags: 0 }).map(drop)
}

pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let pathname = path.as_ptr().expose_provenance() as u64;
    bpf(BPF_OBJ_GET, &mut ObjectAttr { pathname, bpf_fd: 0, file_flags: 0 }).map(owned)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is the prefix of `union bpf_attr` that the command reads, of the size given; pointers in
    // it are to memory of the callers that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for the caller; descriptors fit an int.
    #[expect(clippy::cast_possible_truncation, reason = "a descriptor is an int")]
    unsafe {
        OwnedFd::from_raw_fd(fd as RawFd)
    }
}

/// Whether the interface is a loopback.
pub(super) fn is_loopback(socket: impl AsFd, name: &str) -> io::Result<bool> {
    let mut request = interface_request(name)?;
    device_ioctl(socket.as_fd(), libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(i32::from(flags) & libc::IFF_LOOPBACK != 0)
}

/// Tells the device to leave VLAN tags in received frames, and checks that it does.
///
/// Returns whether the device does so now; one that knows no such feature does.
pub(super) fn keep_vlan_tags(socket: impl AsFd, name: &str) -> io::Result<bool> {
    // `ETHTOOL_GFLAGS`, `ETHTOOL_SFLAGS` and `ETH_FLAG_RXVLAN` of include/uapi/linux/ethtool.h.
    const GET: u32 = 0x25;
    const SET: u32 = 0x26;
    const RXVLAN: u32 = 1 << 8;
    let flags = match ethtool(socket.as_fd(), name, GET, 0) {
        Ok(flags) => flags,
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(true),
        Err(error) => return Err(error),
    };
    if flags & RXVLAN == 0 {
        return Ok(true);
    }
    ethtool(socket.as_fd(), name, SET, flags & !RXVLAN)?;
    Ok(ethtool(socket.as_fd(), name, GET, 0)? & RXVLAN == 0)
}

fn ethtool(socket: BorrowedFd<'_>, name: &str, command: u32, data: u32) -> io::Result<u32> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command, data };
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    device_ioctl(socket, SIOCETHTOOL, &mut request)?;
    Ok(value.data)
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    Ok(request)
}

fn device_ioctl(socket: BorrowedFd<'_>, command: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: `request` is the `ifreq` that these commands take; what it points to outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

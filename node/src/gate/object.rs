//! The compiled gate, and its way into the kernel.

use std::os::fd::{AsFd, BorrowedFd};

use aya::programs::{Program, ProgramInfo, SchedClassifier, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use portcullis_common::layout;

use super::GateError;
use super::pin::PinDir;

/// The object file that `ebpf/` compiles to, as this binary carries it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-gate"));

/// Name of the XDP program in [`OBJECT`].
pub const INGRESS: &str = "portcullis_in";
/// Name of the program for the way out in [`OBJECT`].
pub const EGRESS: &str = "portcullis_out";

/// The programs, verified and in the kernel, attached to nothing yet.
pub(super) struct Object {
    ebpf: Ebpf,
    /// Asked for at once: later the privileges for it may be gone.
    identities: [(&'static str, Identity); 2],
}

impl Object {
    /// Loads the programs. Their maps are the pinned ones where those exist, and are pinned otherwise.
    pub(super) fn load(pin: &PinDir) -> Result<Self, GateError> {
        let mut loader = EbpfLoader::new();
        for map in layout::MAPS {
            loader.map_pin_path(map, pin.map(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(GateError::load)?;
        let missing = || GateError::load("the object lacks a program");
        let ingress: &mut Xdp =
            ebpf.program_mut(INGRESS).ok_or_else(missing)?.try_into().map_err(GateError::load)?;
        ingress.load().map_err(GateError::load)?;
        let egress: &mut SchedClassifier =
            ebpf.program_mut(EGRESS).ok_or_else(missing)?.try_into().map_err(GateError::load)?;
        egress.load().map_err(GateError::load)?;
        let identity = |name| -> Result<_, GateError> {
            let program: &Program = ebpf.program(name).ok_or_else(missing)?;
            Ok((name, Identity::of(&program.info().map_err(GateError::load)?)?))
        };
        let identities = [identity(INGRESS)?, identity(EGRESS)?];
        Ok(Self { ebpf, identities })
    }

    pub(super) fn program(&self, name: &str) -> Result<Loaded<'_>, GateError> {
        let missing = || GateError::load("the object lacks a program");
        let program: &Program = self.ebpf.program(name).ok_or_else(missing)?;
        let identity = self.identities.iter().find(|(known, _)| *known == name);
        let (_, identity) = identity.ok_or_else(missing)?;
        Ok(Loaded { fd: program.fd().map_err(GateError::load)?.as_fd(), identity })
    }
}

pub(super) struct Loaded<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) identity: &'a Identity,
}

/// What makes two loads the same program: the same instructions on the same maps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The kernel's digest of the instructions.
    pub(super) tag: u64,
    maps: Vec<u32>,
}

impl Identity {
    fn of(info: &ProgramInfo) -> Result<Self, GateError> {
        let mut maps = info.map_ids().map_err(GateError::load)?.unwrap_or_default();
        maps.sort_unstable();
        Ok(Self { tag: info.tag(), maps })
    }

    /// The program that the kernel knows by `id`; `None` if there is none.
    pub(super) fn of_id(id: u32) -> Result<Option<Self>, GateError> {
        loaded_programs().flatten().find(|info| info.id() == id).map(|info| Self::of(&info)).transpose()
    }
}

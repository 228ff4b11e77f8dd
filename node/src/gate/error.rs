use std::io;
use std::path::PathBuf;

/// Why the gate cannot be put up, read or taken down.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    // The configuration's fault.
    #[error("the gate has no interface to guard: name the public ones in `gate.interfaces`")]
    NoInterface,
    #[error("`gate.interfaces`: no interface is called `{interface}`")]
    UnknownInterface { interface: String },
    #[error("`gate.interfaces`: `{interface}` is a loopback, which the gate never guards")]
    Loopback { interface: String },
    #[error("`gate.admin` has more than {limit} entries")]
    TooManyAdminRules { limit: usize },

    // The machine's.
    #[error(
        "another XDP program is on `{interface}`, and the gate replaces none: detach it first \
         (a gate that an earlier node left there without its pins counts too)"
    )]
    OtherProgram { interface: String },
    #[error("cannot attach the gate's {what} program to `{interface}` (Linux 6.1 or later is needed)")]
    Attach { interface: String, what: &'static str, source: io::Error },
    #[error(
        "on `{interface}` another egress filter has the gate's place (priority 1, BPF, every protocol): \
         give it another priority"
    )]
    OtherFilter { interface: String },
    #[error(
        "`{interface}` has an `ingress` qdisc, where the gate needs `clsact`, which can do the same: \
         replace it first"
    )]
    OtherQdisc { interface: String },
    #[error("cannot read or remove the gate's egress filter on `{interface}`")]
    Filter { interface: String, source: io::Error },
    #[error("`{interface}` strips VLAN tags before the gate sees them and cannot be told not to")]
    VlanTags { interface: String, source: Option<io::Error> },
    #[error("cannot use {} for the gate's pins", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("cannot load the gate into the kernel")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the gate's map {map} cannot be used")]
    Map { map: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the gate was taken down by hand: it is put up again by a restart")]
    TakenDown,
    #[error("the gate's map {map} is full")]
    Full { map: &'static str },
    #[error("the gate's map {map} has the entry already")]
    Taken { map: &'static str },
    #[error("cannot wait for the CPUs to leave the gate's program (membarrier)")]
    Barrier(#[source] io::Error),
    #[error("cannot ask the kernel about its routes")]
    Netlink(#[source] io::Error),
    #[error("the nftables default-drop cannot be put up: {0}")]
    Nftables(String),
}

impl GateError {
    pub(super) fn load(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Load(error.into())
    }

    pub(super) fn map(
        map: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Map { map, source: source.into() }
    }
}

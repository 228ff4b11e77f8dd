//! The gate under test: packets made by hand, the compiled program run on them by the kernel
//! (`BPF_PROG_TEST_RUN`) or sent over a wire, and a model of what the maps and sockets know for the host's side.

pub mod fuzz;
pub mod kernel;
pub mod model;
pub mod packet;
pub mod quic;
pub mod vlan;
pub mod wire;

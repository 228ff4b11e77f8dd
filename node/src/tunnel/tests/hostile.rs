//! Peers that cheat.

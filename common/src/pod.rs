//! Leave for the host to copy keys and values to and from the maps as bytes.
#![expect(unsafe_code, reason = "aya's Pod is an unsafe marker")]

use crate::Address;
use crate::layout::{
    AdminKey, CidKey, Counter, FlowEntry, FlowKey4, FlowKey6, Hop, HostFlowKey, Session, Settings,
};

// SAFETY: all are `repr(C)`, of integers only, and without padding (checked in `layout`).
unsafe impl aya::Pod for Address {}
unsafe impl aya::Pod for AdminKey {}
unsafe impl aya::Pod for HostFlowKey {}
unsafe impl aya::Pod for Counter {}
unsafe impl aya::Pod for CidKey {}
unsafe impl aya::Pod for FlowEntry {}
unsafe impl aya::Pod for FlowKey4 {}
unsafe impl aya::Pod for FlowKey6 {}
unsafe impl aya::Pod for Hop {}
unsafe impl aya::Pod for Session {}
unsafe impl aya::Pod for Settings {}

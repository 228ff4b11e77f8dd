//! What the XDP program and the host share.
#![no_std]

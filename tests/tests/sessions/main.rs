//! Private sessions as people use them: `portcullis access` against a node behind its gate and a connector in an office
//! that lets nothing in, each a process of its own on the real kernel.

mod carriers;
mod conversation;
mod ending;
mod losses;
mod parties;
mod paths;
mod reloads;

use std::time::Duration;

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

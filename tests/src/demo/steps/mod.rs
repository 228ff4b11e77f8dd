//! The steps, in the order in which they are shown.

use crate::demo::Step;

mod app;
mod assertion;
mod denied;
mod log;
mod login;
mod metrics;
mod office;
mod password;
mod revoked;
mod scan;

pub fn all() -> [Step; 10] {
    [
        scan::STEP,
        office::STEP,
        login::STEP,
        password::STEP,
        app::STEP,
        assertion::STEP,
        denied::STEP,
        revoked::STEP,
        log::STEP,
        metrics::STEP,
    ]
}

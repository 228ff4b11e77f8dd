//! Private sessions on a real node, with both ends over loopback.

mod ahead;
mod cheats;
mod ending;
mod ends;
mod flow;
mod instances;
mod left;
mod many;
mod relay;
mod round_trips;
mod waiting;

//! `portcullis access` against the running node: logging in, what a login is good for, how it ends, and what does not get
//! in.

mod hostile;
mod login;

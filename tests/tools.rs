//! What operators look at and install: `status`, `top`, completions and manual pages, by the real binary.

mod support;

mod tools {
    pub(crate) mod manual;
    pub(crate) mod status;
    pub(crate) mod top;
}

use std::time::Duration;

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(30);

//! Everything bad that can come in, against the real binary: configurations, tables, providers' answers, and items
//! that other tools wrote. Each is named, none is fatal for what is in order, and none of them shows a secret.

mod support;

mod bad_input {
    pub(crate) mod configuration;
    pub(crate) mod items;
    pub(crate) mod provider;
    pub(crate) mod strangers;
    pub(crate) mod table;
}

//! The keys that the configuration describes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{App, UsageError};
use crate::config::{self, SealingMode, StoreKind};
use crate::seal::{Keeping, KeyAddress, Keys, KmsKeys, LocalKeys, Mode, Ring};

/// Every key that may be asked for. Nothing is sent yet.
pub(super) fn keys(app: &App) -> anyhow::Result<Keys> {
    let sealing = &app.config().sealing;
    let mode = match sealing.mode {
        SealingMode::Off => Mode::Off,
        SealingMode::Local => Mode::Local,
        SealingMode::Kms => Mode::Kms,
    };
    let local = if sealing.has_own_key() { Some(own_keys(sealing)?) } else { None };
    let kms = match app.config().store.kind {
        StoreKind::Dynamodb => Some(ring(app)),
        StoreKind::Embedded => None,
    };
    Ok(Keys { mode, local, kms })
}

/// Keys that KMS wraps.
pub(super) fn ring(app: &App) -> Ring<KmsKeys> {
    let (sealing, store) = (&app.config().sealing, &app.config().store);
    let address = KeyAddress {
        table: sealing.key_table.clone(),
        region: store.region.clone(),
        endpoint: store.endpoint.clone(),
        kms_endpoint: sealing.kms_endpoint.clone(),
    };
    let keeping = Keeping { fresh: sealing.fresh, stale: sealing.stale };
    Ring::new(KmsKeys::new(address), sealing.shards, keeping, app.clock())
}

/// The keys that the configuration gives, or names a file of.
pub(super) fn own_keys(config: &config::Sealing) -> Result<LocalKeys, UsageError> {
    let wrong = |key: &str, why: String| UsageError(format!("{key}: {why}"));
    match (&config.keys, &config.key_file) {
        (Some(keys), _) => {
            LocalKeys::parse(keys.expose()).map_err(|error| wrong("sealing.key", error.to_string()))
        }
        (None, Some(file)) => {
            from_file(file).map_err(|why| wrong(&format!("sealing.key_file = {:?}", file.display()), why))
        }
        (None, None) => Err(wrong("sealing.key_file", "there is no key: name its file".into())),
    }
}

fn from_file(file: &Path) -> Result<LocalKeys, String> {
    let remedy = "make one with `(umask 077; openssl rand -hex 32 > FILE)`";
    let found = fs::metadata(file).map_err(|error| format!("{error}: {remedy}"))?;
    if !found.is_file() {
        return Err(format!("is no file: {remedy}"));
    }
    let mode = found.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!("others can read it (mode {:o}): `chmod 600` it", mode & 0o777));
    }
    let text = zeroize::Zeroizing::new(fs::read_to_string(file).map_err(|error| error.to_string())?);
    LocalKeys::parse(&text).map_err(|error| error.to_string())
}

//! A role before the services: requests that its policy does not allow are refused in AWS's words, and all are accounted for.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial::iam::Role;

use super::world::{HOME, World};
use crate::support::iam::{Grant, Need, Policy, needs};
use crate::support::{ACCESS_DENIED, Call, DynamoLocal, Front, Refusal};

/// A role's way to DynamoDB, KMS, S3, and where client secrets are kept.
pub(crate) struct Gate {
    name: String,
    dynamodb: Front,
    kms: Front,
    s3: Front,
    secrets: Front,
    judge: Judge,
}

#[derive(Clone)]
struct Judge {
    policy: Arc<Policy>,
    ledger: Arc<Mutex<Ledger>>,
    /// Whether the table takes no tokens: no lack of a right, and not accounted for.
    stuck: Arc<AtomicBool>,
}

#[derive(Default)]
struct Ledger {
    used: BTreeSet<Grant>,
    refused: BTreeSet<String>,
}

impl Gate {
    /// With the policy that `perennial iam print` prints for the role.
    pub(crate) async fn of(world: &World, role: Role, options: &[&str]) -> Self {
        Self::before(world, role.as_str(), world.policy(role, options)).await
    }

    pub(crate) async fn before(world: &World, name: &str, policy: Policy) -> Self {
        let judge = Judge { policy: Arc::new(policy), ledger: Arc::default(), stuck: Arc::default() };
        Self {
            name: name.to_owned(),
            dynamodb: judge.before(DynamoLocal::shared().await.endpoint()).await,
            kms: judge.before(world.moto.endpoint()).await,
            s3: judge.before(world.moto.endpoint()).await,
            secrets: judge.before(world.moto.endpoint()).await,
            judge,
        }
    }

    /// DynamoDB Local has no backups; moto's DynamoDB has.
    pub(crate) async fn before_a_table_with_backups(&self, world: &World) -> Front {
        self.judge.before(world.moto.endpoint()).await
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn dynamodb(&self) -> &str {
        self.dynamodb.url()
    }

    pub(crate) fn kms(&self) -> &str {
        self.kms.url()
    }

    /// The environment of whoever goes through it.
    pub(crate) fn variables(&self) -> [(&'static str, &str); 4] {
        [
            ("PERENNIAL__STORE__ENDPOINT", self.dynamodb.url()),
            ("PERENNIAL__SEALING__KMS_ENDPOINT", self.kms.url()),
            ("PERENNIAL__SPILL__S3_ENDPOINT", self.s3.url()),
            ("PERENNIAL__SECRETS__ENDPOINT", self.secrets.url()),
        ]
    }

    /// Whether writes of tokens are refused from now on.
    pub(crate) fn take_no_tokens(&self, stuck: bool) {
        self.judge.stuck.store(stuck, Ordering::Relaxed);
    }

    /// What was asked for in the role's name elsewhere.
    pub(crate) fn judge(&self, needs: &[Need]) {
        // The account is what counts.
        drop(self.judge.of(needs));
    }

    pub(crate) fn granted(&self) -> BTreeSet<Grant> {
        self.judge.policy.grants()
    }

    pub(crate) fn used(&self) -> BTreeSet<Grant> {
        self.judge.ledger().used.clone()
    }

    pub(crate) fn refused(&self) -> BTreeSet<String> {
        self.judge.ledger().refused.clone()
    }
}

impl Judge {
    async fn before(&self, server: &str) -> Front {
        let judge = self.clone();
        Front::before(server, move |call| judge.call(call)).await
    }

    fn call(&self, call: &Call) -> Option<Refusal> {
        let tokens = b"TOKEN#ACCESS";
        let of_tokens = call.writes() && call.body.windows(tokens.len()).any(|window| window == tokens);
        if of_tokens && self.stuck.load(Ordering::Relaxed) {
            return Some(ACCESS_DENIED);
        }
        self.of(&needs(call, HOME))
    }

    /// A request needs all of them.
    fn of(&self, needs: &[Need]) -> Option<Refusal> {
        let mut refusal = None;
        let mut ledger = self.ledger();
        for need in needs {
            match self.policy.allows(need) {
                Some(grant) => drop(ledger.used.insert(grant)),
                None => {
                    ledger.refused.insert(format!("{need:?}"));
                    refusal.get_or_insert_with(|| Refusal::of_access(need.refusal()));
                }
            }
        }
        refusal
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Prints a secret's string, and one member of it, as `aws-parameters-and-secrets-lambda` reads them.
//!
//! usage: extension-reader SECRET_ID [VERSION_STAGE]; the port and the token are in the environment, as in AWS Lambda.

use aws_parameters_and_secrets_lambda::{Manager, QueryBuilder};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let manager = Manager::default();
    let secret = match words.as_slice() {
        [id] => manager.get_secret(id.as_str()),
        [id, stage] => manager.get_secret(QueryBuilder::new(id).with_version_stage(stage)),
        _ => anyhow::bail!("usage: extension-reader SECRET_ID [VERSION_STAGE]"),
    };
    println!("{}", secret.get_raw().await?);
    println!("{}", secret.get_single("access_token").await?);
    Ok(())
}

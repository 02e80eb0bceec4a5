//! The CloudFormation template, as an emulator makes a stack of it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::part;

/// A stack, as the emulator made it.
pub(crate) struct Stack(pub(crate) Value);

impl Stack {
    pub(crate) fn emulate(arguments: &[&str]) -> Self {
        part(".parts/moto/.complete");
        let output = Command::new(part(".parts/moto/bin/python"))
            .arg(part("scripts/emulate-stack.py"))
            .args(arguments)
            .envs([("AWS_ACCESS_KEY_ID", "local"), ("AWS_SECRET_ACCESS_KEY", "local")])
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .output()
            .expect("Python runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: the stack was not created:\n{errors}");
        let stack = Self(serde_json::from_slice(&output.stdout).expect("JSON"));
        assert_eq!(stack.0["status"], "CREATE_COMPLETE", "{arguments:?}");
        stack
    }

    /// Resources of this type by their logical ids, with their properties.
    pub(crate) fn of_type(&self, kind: &str) -> BTreeMap<&str, &Value> {
        let resources = self.0["resources"].as_object().expect("resources");
        let of_kind = resources.iter().filter(|(_, resource)| resource["type"] == kind);
        of_kind.map(|(name, resource)| (name.as_str(), &resource["properties"])).collect()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.of_type(kind).len()
    }

    pub(crate) fn only(&self, kind: &str) -> &Value {
        let found = self.of_type(kind);
        assert_eq!(found.len(), 1, "{kind}");
        found.into_values().next().expect("one")
    }

    pub(crate) fn container(&self, name: &str) -> &Value {
        let containers = &self.only("AWS::ECS::TaskDefinition")["ContainerDefinitions"];
        let named = list(containers).iter().find(|container| container["Name"] == name);
        named.unwrap_or_else(|| panic!("no container {name} in {containers:#}"))
    }

    pub(crate) fn environment(&self, container: &str) -> Vec<(String, String)> {
        // A parameter of type Number is one here; CloudFormation sends it as text.
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let variables = list(&self.container(container)["Environment"]).iter();
        variables.map(|variable| (text(&variable["Name"]).to_owned(), plain(&variable["Value"]))).collect()
    }

    /// What the task's role allows, on which resources; the wildcard is never one of them.
    pub(crate) fn grants(&self) -> Vec<(String, Vec<String>)> {
        let role = self.of_type("AWS::IAM::Role")["TaskRole"];
        let policies = list(&role["Policies"]).iter();
        let statements = policies.flat_map(|policy| list(&policy["PolicyDocument"]["Statement"]));
        let mut grants = Vec::new();
        for statement in statements {
            assert_eq!(statement["Effect"], "Allow");
            let resources: Vec<_> = words(&statement["Resource"]);
            assert!(resources.iter().all(|resource| *resource != "*"), "{statement:#}");
            grants.extend(words(&statement["Action"]).into_iter().map(|action| (action, resources.clone())));
        }
        grants
    }

    pub(crate) fn dynamodb_actions(&self) -> BTreeSet<String> {
        let actions = self.grants().into_iter().map(|(action, _)| action);
        actions.filter_map(|action| Some(action.strip_prefix("dynamodb:")?.to_owned())).collect()
    }
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// One text or a list of them.
pub(crate) fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(word) => vec![word.clone()],
        other => list(other).iter().map(|word| text(word).to_owned()).collect(),
    }
}

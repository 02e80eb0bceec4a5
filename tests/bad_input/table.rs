//! Tables that cannot be used, and tables that cannot be reached.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};

use crate::support::{Deployment, DynamoLocal, free_port, log_lines, wait_until};

/// No command takes longer than this to say that it cannot work. The store's own limit for a call is seven seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a command that must fail within its bound; returns what it says.
fn fails(deployment: &Deployment, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    #[expect(clippy::disallowed_methods, reason = "how long a child takes")]
    let began = Instant::now();
    let output = deployment.run_with(arguments, variables);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(began.elapsed() < PATIENCE, "{arguments:?} took {:?}", began.elapsed());
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_is_named_with_the_command_that_makes_it() {
    let deployment = Deployment::without_table(DynamoLocal::shared().await, "");
    for arguments in [
        ["run"].as_slice(),
        &["run", "--once"],
        &["clients", "list"],
        &["get", "acme"],
        &["why", "acme"],
        &["table", "check"],
    ] {
        let errors = fails(&deployment, arguments, &[]);
        assert!(errors.contains(deployment.table_name()), "{arguments:?}: {errors}");
        assert!(errors.contains("perennial table create"), "{arguments:?}: {errors}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_shape_is_refused_and_left_alone() {
    let local = DynamoLocal::shared().await;
    for (hash, range) in [("id", None), ("PK", Some("sort")), ("PK", Some("SK"))] {
        let deployment = Deployment::without_table(local, "");
        make(local, deployment.table_name(), hash, range).await;
        for arguments in [["run"].as_slice(), &["table", "create"]] {
            let errors = fails(&deployment, arguments, &[]);
            let point = if range == Some("SK") { "by-shard" } else { "key schema" };
            assert!(errors.contains(point), "{hash}, {range:?}: {errors}");
        }
        let everything = fails(&deployment, &["table", "create"], &[]);
        assert!(everything.contains("time to live"), "{everything}");
        assert_eq!(everything.contains("META/SCHEMA"), range == Some("SK"), "{everything}");
        let scan = local.client().scan().table_name(deployment.table_name()).send().await.expect("a scan");
        assert_eq!(scan.count(), 0, "something was written to a table that is not ours");
    }
}

async fn make(local: &DynamoLocal, table: &str, hash: &str, range: Option<&str>) {
    let names = [(hash, KeyType::Hash)].into_iter().chain(range.map(|name| (name, KeyType::Range)));
    let mut request =
        local.client().create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
    for (name, kind) in names {
        let attribute = AttributeDefinition::builder().attribute_name(name);
        let attribute = attribute.attribute_type(ScalarAttributeType::S).build().expect("complete");
        let key = KeySchemaElement::builder().attribute_name(name).key_type(kind).build().expect("complete");
        request = request.attribute_definitions(attribute).key_schema(key);
    }
    request.send().await.expect("DynamoDB Local makes tables");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_shards_or_a_newer_schema_is_refused() {
    let local = DynamoLocal::shared().await;
    let deployment = Deployment::on_dynamo(local, "");
    let commands =
        [["run"].as_slice(), &["clients", "list"], &["clients", "remove", "a", "--yes"], &["get", "a"]];
    for arguments in commands {
        let errors = fails(&deployment, arguments, &[("PERENNIAL__STORE__SHARDS", "256")]);
        assert!(errors.contains("set `shards` to 16") && errors.contains("256"), "{arguments:?}: {errors}");
    }

    let number = |number: &str| AttributeValue::N(number.to_owned());
    let update = local.client().update_item().table_name(deployment.table_name());
    let update =
        update.key("PK", AttributeValue::S("META".into())).key("SK", AttributeValue::S("SCHEMA".into()));
    let update =
        update.update_expression("SET min_reader = :n").expression_attribute_values(":n", number("2"));
    update.send().await.expect("an update");
    for arguments in commands {
        let errors = fails(&deployment, arguments, &[]);
        assert!(errors.contains("upgrade"), "{arguments:?}: {errors}");
    }

    let delete = local.client().delete_item().table_name(deployment.table_name());
    let delete =
        delete.key("PK", AttributeValue::S("META".into())).key("SK", AttributeValue::S("SCHEMA".into()));
    delete.send().await.expect("a deletion");
    for arguments in commands {
        let errors = fails(&deployment, arguments, &[]);
        assert!(errors.contains("perennial table create"), "{arguments:?}: {errors}");
    }
}

#[test]
fn missing_credentials_are_said_at_once_with_their_remedy() {
    let named = "[store]\ntable = \"clients\"\nregion = \"eu-central-1\"\n";
    let elsewhere = "[store]\ntable = \"clients\"\nendpoint = \"http://dynamodb.test:8000\"\n";
    for text in [named, elsewhere] {
        let deployment = Deployment::embedded("");
        deployment.configure(text);
        for arguments in [["run"].as_slice(), &["run", "--once"], &["clients", "list"], &["get", "acme"]] {
            let errors = fails(&deployment, arguments, &[("AWS_EC2_METADATA_DISABLED", "true")]);
            for remedy in ["AWS_PROFILE", "AWS_ACCESS_KEY_ID", "task role"] {
                assert!(errors.contains(remedy), "{arguments:?}: {errors}");
            }
        }
    }
}

#[test]
fn without_a_region_the_remedy_is_a_region() {
    let deployment = Deployment::embedded("");
    deployment.configure("[store]\ntable = \"clients\"\n");
    let errors = fails(&deployment, &["run"], &[("AWS_EC2_METADATA_DISABLED", "true")]);
    assert!(errors.contains("region") && errors.contains("AWS_REGION"), "{errors}");
}

fn nowhere() -> Deployment {
    let deployment = Deployment::embedded("");
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    deployment.configure(&format!("[store]\nendpoint = \"{endpoint}\"\n[health]\nenabled = false\n"));
    deployment
}

#[test]
fn commands_give_up_on_a_table_that_cannot_be_reached() {
    let deployment = nowhere();
    for arguments in [
        ["clients", "list"].as_slice(),
        &["get", "acme"],
        &["why", "acme"],
        &["table", "check"],
        &["table", "create"],
        &["run", "--once"],
    ] {
        let errors = fails(&deployment, arguments, &[]);
        assert!(errors.contains("no answer from http://127.0.0.1"), "{arguments:?}: {errors}");
    }
}

/// A web server that knows no page.
fn web_server() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for connection in socket.incoming() {
            let mut connection = connection.expect("a connection");
            let mut request = [0; 8192];
            let _ = connection.read(&mut request).expect("a request");
            let page = "<html>no such page</html>";
            let head = "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\nconnection: close";
            let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{page}", page.len());
            connection.write_all(answer.as_bytes()).expect("it listens");
        }
    });
    port
}

#[test]
fn an_endpoint_that_is_not_dynamodb_is_said_to_be_another() {
    let deployment = Deployment::embedded("");
    let endpoint = format!("http://127.0.0.1:{}", web_server());
    deployment.configure(&format!("[store]\nendpoint = \"{endpoint}\"\n[health]\nenabled = false\n"));
    for arguments in [["clients", "list"], ["table", "check"], ["run", "--once"]] {
        let errors = fails(&deployment, &arguments, &[]);
        for part in [endpoint.as_str(), "404", "is it DynamoDB?"] {
            assert!(errors.contains(part), "{arguments:?}: {errors}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_keeps_trying_a_table_that_cannot_be_reached_until_it_is_stopped() {
    let deployment = nowhere();
    let mut daemon = deployment.daemon().await;
    wait_until(Duration::from_secs(30), "it has tried twice", async || {
        let tries = log_lines(&daemon.errors());
        tries.iter().filter(|line| line["message"] == "the table gives no answer: trying again").count() >= 2
    })
    .await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(Duration::from_secs(20)).await, 0);
}

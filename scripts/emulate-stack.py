#!/usr/bin/env python3
"""Creates the CloudFormation stack of ecs/perennial.yaml in moto, in this process, and prints what came of it as JSON.

    .parts/moto/bin/python scripts/emulate-stack.py [--table-at ENDPOINT] [NAME=VALUE]...

NAME=VALUE are the template's parameters; Image, EnvironmentFileArn and the network are made up where they are not given.
With --table-at, the table is made in the DynamoDB at that endpoint, too, as CloudFormation would make it; that needs
credentials and a region in the environment, as the AWS SDKs do.

Resources that moto cannot create have their properties resolved all the same, and are named under "unsupported"; alarms
are put into its CloudWatch.
"""

import json
import logging
import os
import sys
import warnings

import boto3
import moto.cloudformation.parsing as parsing
from moto import mock_aws

TEMPLATE = os.path.join(os.path.dirname(__file__), "..", "ecs", "perennial.yaml")
STACK = "perennial"
REGION = "us-east-1"
STAND_INS = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": REGION}


def drop_no_value(clean):
    """CloudFormation takes AWS::NoValue out of lists, moto leaves a null there."""

    def cleaned(value, resources):
        value = clean(value, resources)
        return [item for item in value if item is not None] if isinstance(value, list) else value

    return cleaned


class Resolved(parsing.ResourceMap):
    """Keeps the properties of each resource as its creation sees them: parameters and references filled in."""

    properties = {}

    def create(self, template):
        done = super().create(template)
        for name, resource in self._template["Resources"].items():
            condition = resource.get("Condition")
            if condition is None or self.lazy_condition_map[condition]:
                properties = parsing.clean_json(resource.get("Properties", {}), self)
                kept = {key: resource[key] for key in ("DeletionPolicy", "UpdateReplacePolicy") if key in resource}
                self.properties[name] = {"type": resource["Type"], "properties": properties, **kept}
        return done


def network():
    ec2 = boto3.client("ec2", **STAND_INS)
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
    return {
        "VpcId": ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
        "SubnetIds": ",".join(subnets[:2]),
        "RouteTableIds": ec2.describe_route_tables()["RouteTables"][0]["RouteTableId"],
    }


def put_alarms(resources):
    cloudwatch = boto3.client("cloudwatch", **STAND_INS)
    for resource in resources.values():
        if resource["type"] == "AWS::CloudWatch::Alarm":
            properties = resource["properties"]
            for number in ("Threshold", "Period", "EvaluationPeriods", "DatapointsToAlarm"):
                if number in properties:
                    properties[number] = int(properties[number])
            cloudwatch.put_metric_alarm(**properties)
    return cloudwatch.describe_alarms()["MetricAlarms"]


def create_table_at(endpoint, properties):
    dynamodb = boto3.client("dynamodb", endpoint_url=endpoint)
    of_creation = dynamodb.meta.service_model.operation_model("CreateTable").input_shape.members
    # The key is of the emulated account, which this endpoint knows nothing of.
    request = {key: value for key, value in properties.items() if key in of_creation and key != "SSESpecification"}
    dynamodb.create_table(**request)
    dynamodb.get_waiter("table_exists").wait(TableName=request["TableName"], WaiterConfig={"Delay": 1})
    time_to_live = properties["TimeToLiveSpecification"]
    dynamodb.update_time_to_live(TableName=request["TableName"], TimeToLiveSpecification=time_to_live)


def emulate(parameters):
    parameters = {
        "Image": "perennial:emulated",
        "EnvironmentFileArn": "arn:aws:s3:::perennial-configuration/perennial.env",
        **network(),
        **parameters,
    }
    cloudformation = boto3.client("cloudformation", **STAND_INS)
    with open(TEMPLATE, encoding="utf-8") as template:
        cloudformation.create_stack(
            StackName=STACK,
            TemplateBody=template.read(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_IAM"],
        )
    stack = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
    resources = Resolved.properties
    created = cloudformation.describe_stack_resources(StackName=STACK)["StackResources"]
    created = {resource["LogicalResourceId"] for resource in created if resource.get("PhysicalResourceId")}
    tables = boto3.client("dynamodb", **STAND_INS)
    return {
        "status": stack["StackStatus"],
        "outputs": {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]},
        "resources": resources,
        "unsupported": sorted(set(resources) - created),
        "tables": [tables.describe_table(TableName=name)["Table"] for name in tables.list_tables()["TableNames"]],
        "alarms": put_alarms(resources),
    }


def main(arguments):
    endpoint = None
    if arguments[:1] == ["--table-at"]:
        endpoint, arguments = arguments[1], arguments[2:]
    parameters = dict(argument.split("=", 1) for argument in arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    parsing.clean_json = drop_no_value(parsing.clean_json)
    parsing.ResourceMap = Resolved
    # moto imports the name into this module.
    sys.modules["moto.cloudformation.models"].ResourceMap = Resolved
    out, sys.stdout = sys.stdout, sys.stderr
    with mock_aws():
        stack = emulate(parameters)
    if endpoint:
        create_table_at(endpoint, stack["resources"]["Table"]["properties"])
    json.dump(stack, out, default=str, indent=1)
    out.write("\n")


if __name__ == "__main__":
    main(sys.argv[1:])

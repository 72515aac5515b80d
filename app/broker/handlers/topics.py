"""Topics made, grown, deleted, described: CreateTopics, CreatePartitions, DeleteTopics, DescribeConfigs."""

from typing import TypeAlias

from kafka.errors import BrokerResponseError, InvalidReplicationFactorError, InvalidRequestError
from kafka.protocol.admin import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreateTopicsRequest,
    CreateTopicsResponse,
    DeleteTopicsRequest,
    DeleteTopicsResponse,
    DescribeConfigsRequest,
    DescribeConfigsResponse,
)

from app.broker.state import BrokerState

Created: TypeAlias = CreateTopicsResponse.CreatableTopicResult
Grown: TypeAlias = CreatePartitionsResponse.CreatePartitionsTopicResult
Deleted: TypeAlias = DeleteTopicsResponse.DeletableTopicResult
Described: TypeAlias = DescribeConfigsResponse.DescribeConfigsResult
Setting: TypeAlias = DescribeConfigsResponse.DescribeConfigsResult.DescribeConfigsResourceResult
BROKERS_CHOICE = -1
TOPIC_RESOURCE = 2
SET_BY_TOPIC, BUILT_IN = 1, 5  # Kafka's codes for where a setting's value comes from


async def create_topics(state: BrokerState, request: CreateTopicsRequest) -> CreateTopicsResponse:
    return CreateTopicsResponse(topics=[_create(state, topic, request.validate_only) for topic in request.topics])


def _create(state: BrokerState, wanted: CreateTopicsRequest.CreatableTopic, validate_only: bool) -> Created:
    count = len(wanted.assignments) or wanted.num_partitions
    count = 1 if count == BROKERS_CHOICE else count
    settings = {setting.name: setting.value for setting in wanted.configs}
    try:
        if wanted.replication_factor not in (BROKERS_CHOICE, 1):
            raise InvalidReplicationFactorError(f"{wanted.replication_factor} replicas of one broker; write 1")
        state.topics.check_new(wanted.name, count, settings)
        if not validate_only:
            state.topics.create(wanted.name, count, settings)
    except BrokerResponseError as error:
        return Created(name=wanted.name, error_code=error.errno, error_message=str(error))
    return Created(name=wanted.name, error_code=0, error_message=None)


async def create_partitions(state: BrokerState, request: CreatePartitionsRequest) -> CreatePartitionsResponse:
    results = [_grow(state, topic, request.validate_only) for topic in request.topics]
    return CreatePartitionsResponse(results=results)


def _grow(state: BrokerState, wanted: CreatePartitionsRequest.CreatePartitionsTopic, validate_only: bool) -> Grown:
    try:
        topic = state.topics.find(wanted.name)
        topic.check_growth(wanted.count)
        if not validate_only:
            topic.grow(wanted.count)
    except BrokerResponseError as error:
        return Grown(name=wanted.name, error_code=error.errno, error_message=str(error))
    return Grown(name=wanted.name, error_code=0)


async def delete_topics(state: BrokerState, request: DeleteTopicsRequest) -> DeleteTopicsResponse:
    return DeleteTopicsResponse(responses=[_delete(state, name) for name in request.topic_names])


def _delete(state: BrokerState, name: str) -> Deleted:
    try:
        state.topics.delete(name)
    except BrokerResponseError as error:
        return Deleted(name=name, error_code=error.errno, error_message=str(error))
    state.groups.forget_topic(name)
    return Deleted(name=name, error_code=0)


async def describe_configs(state: BrokerState, request: DescribeConfigsRequest) -> DescribeConfigsResponse:
    return DescribeConfigsResponse(results=[_describe(state, resource) for resource in request.resources])


def _describe(state: BrokerState, wanted: DescribeConfigsRequest.DescribeConfigsResource) -> Described:
    try:
        if wanted.resource_type != TOPIC_RESOURCE:
            raise InvalidRequestError("the development broker has settings of topics only")
        topic = state.topics.find(wanted.resource_name)
    except BrokerResponseError as error:
        return _description(wanted, error.errno, str(error), [])
    settings = [
        _setting(name, value, name in topic.settings)
        for name, value in topic.config.as_strings().items()
        if wanted.configuration_keys is None or name in wanted.configuration_keys
    ]
    return _description(wanted, 0, None, settings)


def _description(
    wanted: DescribeConfigsRequest.DescribeConfigsResource,
    error_code: int,
    error_message: str | None,
    settings: list[Setting],
) -> Described:
    return Described(
        error_code=error_code,
        error_message=error_message,
        resource_type=wanted.resource_type,
        resource_name=wanted.resource_name,
        configs=settings,
    )


def _setting(name: str, value: str, is_set: bool) -> Setting:
    return Setting(
        name=name,
        value=value,
        read_only=True,
        config_source=SET_BY_TOPIC if is_set else BUILT_IN,
        is_sensitive=False,
        synonyms=[],
        documentation=None,
    )

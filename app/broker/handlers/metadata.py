"""Who and where: Metadata, FindCoordinator."""

from typing import TypeAlias

from kafka.errors import UnknownTopicOrPartitionError
from kafka.protocol.metadata import (
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    MetadataRequest,
    MetadataResponse,
)

from app.broker.state import CLUSTER_ID, NODE_ID, BrokerState
from app.broker.topics import Topic

TopicAnswer: TypeAlias = MetadataResponse.MetadataResponseTopic
PartitionAnswer: TypeAlias = MetadataResponse.MetadataResponseTopic.MetadataResponsePartition


async def metadata(state: BrokerState, request: MetadataRequest) -> MetadataResponse:
    """Asking for a topic never creates it: a consumer that is early must not fix the number of partitions."""
    return MetadataResponse(
        brokers=[MetadataResponse.MetadataResponseBroker(node_id=NODE_ID, host=state.host, port=state.port)],
        cluster_id=CLUSTER_ID,
        controller_id=NODE_ID,
        topics=[_describe(state, name) for name in _names(state, request)],
    )


def _names(state: BrokerState, request: MetadataRequest) -> list[str]:
    """All of them where the list is null, in version 0 where it is empty."""
    if request.topics is None or (request.version == 0 and not request.topics):
        return [topic.name for topic in state.topics]
    return [topic.name for topic in request.topics]


def _describe(state: BrokerState, name: str) -> TopicAnswer:
    try:
        topic = state.topics.find(name)
    except UnknownTopicOrPartitionError as error:
        return TopicAnswer(error_code=error.errno, name=name, partitions=[])
    return TopicAnswer(error_code=0, name=name, partitions=_describe_partitions(topic))


def _describe_partitions(topic: Topic) -> list[PartitionAnswer]:
    return [
        PartitionAnswer(
            error_code=0,
            partition_index=index,
            leader_id=NODE_ID,
            leader_epoch=0,
            replica_nodes=[NODE_ID],
            isr_nodes=[NODE_ID],
            offline_replicas=[],
        )
        for index in range(len(topic.partitions))
    ]


async def find_coordinator(state: BrokerState, request: FindCoordinatorRequest) -> FindCoordinatorResponse:
    """The one broker coordinates every group and every transaction."""
    return FindCoordinatorResponse(error_code=0, node_id=NODE_ID, host=state.host, port=state.port)

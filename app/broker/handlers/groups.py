"""Consumer groups as far as explicit assignment and lag tools need them: offsets, without members."""

from collections import defaultdict
from typing import TypeAlias

from kafka.errors import BrokerResponseError, UnstableOffsetCommitError
from kafka.protocol.admin import (
    DeleteGroupsRequest,
    DeleteGroupsResponse,
    DescribeGroupsRequest,
    DescribeGroupsResponse,
    ListGroupsRequest,
    ListGroupsResponse,
)
from kafka.protocol.consumer import (
    OffsetCommitRequest,
    OffsetCommitResponse,
    OffsetFetchRequest,
    OffsetFetchResponse,
)

from app.broker.groups import CommittedOffset
from app.broker.state import BrokerState

CommittedTopic: TypeAlias = OffsetCommitResponse.OffsetCommitResponseTopic
CommittedPartition: TypeAlias = OffsetCommitResponse.OffsetCommitResponseTopic.OffsetCommitResponsePartition
FetchedTopic: TypeAlias = OffsetFetchResponse.OffsetFetchResponseTopic
FetchedPartition: TypeAlias = OffsetFetchResponse.OffsetFetchResponseTopic.OffsetFetchResponsePartition
NOTHING_COMMITTED = CommittedOffset(offset=-1, leader_epoch=-1, metadata="")
KNOWN, UNKNOWN = (
    "Empty",
    "Dead",
)  # Kafka's words for a group without members, and for one it has never heard of


async def offset_commit(state: BrokerState, request: OffsetCommitRequest) -> OffsetCommitResponse:
    topics = []
    for topic in request.topics:
        partitions = [_commit(state, request.group_id, topic.name, sent) for sent in topic.partitions]
        topics.append(CommittedTopic(name=topic.name, partitions=partitions))
    return OffsetCommitResponse(topics=topics)


def _commit(
    state: BrokerState,
    group: str,
    topic: str,
    sent: OffsetCommitRequest.OffsetCommitRequestTopic.OffsetCommitRequestPartition,
) -> CommittedPartition:
    index = sent.partition_index
    try:
        state.find_partition("OffsetCommit", topic, index)
    except BrokerResponseError as error:
        return CommittedPartition(partition_index=index, error_code=error.errno)
    committed = CommittedOffset(sent.committed_offset, sent.committed_leader_epoch, sent.committed_metadata or "")
    state.groups.commit(group, topic, index, committed)
    return CommittedPartition(partition_index=index, error_code=0)


async def offset_fetch(state: BrokerState, request: OffsetFetchRequest) -> OffsetFetchResponse:
    """Nothing committed is offset -1, not an error. No list of topics means all that the group committed.

    Who requires what is stable is told to come again while an open transaction is about to change it.
    """
    committed = state.groups.committed(request.group_id)
    topics = []
    for topic, partitions in _wanted(request, committed).items():
        answers = []
        for index in partitions:
            unstable = request.require_stable and state.transactions.is_pending(request.group_id, topic, index)
            found = NOTHING_COMMITTED if unstable else committed.get((topic, index), NOTHING_COMMITTED)
            answers.append(_fetched(index, found, UnstableOffsetCommitError.errno if unstable else 0))
        topics.append(FetchedTopic(name=topic, partitions=answers))
    return OffsetFetchResponse(topics=topics, error_code=0)


def _wanted(request: OffsetFetchRequest, committed: dict[tuple[str, int], CommittedOffset]) -> dict[str, list[int]]:
    if request.topics is not None:
        return {topic.name: topic.partition_indexes for topic in request.topics}
    wanted = defaultdict(list)
    for topic, partition in committed:
        wanted[topic].append(partition)
    return wanted


def _fetched(index: int, committed: CommittedOffset, error_code: int) -> FetchedPartition:
    return FetchedPartition(
        partition_index=index,
        committed_offset=committed.offset,
        committed_leader_epoch=committed.leader_epoch,
        metadata=committed.metadata,
        error_code=error_code,
    )


async def list_groups(state: BrokerState, request: ListGroupsRequest) -> ListGroupsResponse:
    names = state.groups.names if not request.states_filter or KNOWN in request.states_filter else []
    listed = [ListGroupsResponse.ListedGroup(group_id=name, protocol_type="", group_state=KNOWN) for name in names]
    return ListGroupsResponse(error_code=0, groups=listed)


async def describe_groups(state: BrokerState, request: DescribeGroupsRequest) -> DescribeGroupsResponse:
    described = [
        DescribeGroupsResponse.DescribedGroup(
            error_code=0,
            group_id=name,
            group_state=KNOWN if name in state.groups.names else UNKNOWN,
            protocol_type="",
            protocol_data="",
            members=[],
        )
        for name in request.groups
    ]
    return DescribeGroupsResponse(groups=described)


async def delete_groups(state: BrokerState, request: DeleteGroupsRequest) -> DeleteGroupsResponse:
    results = [_delete(state, name) for name in request.groups_names]
    return DeleteGroupsResponse(results=results)


def _delete(state: BrokerState, name: str) -> DeleteGroupsResponse.DeletableGroupResult:
    try:
        state.groups.delete(name)
    except BrokerResponseError as error:
        return DeleteGroupsResponse.DeletableGroupResult(group_id=name, error_code=error.errno)
    return DeleteGroupsResponse.DeletableGroupResult(group_id=name, error_code=0)

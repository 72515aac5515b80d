"""Which requests are answered, in which versions, by which handler."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from kafka.protocol.admin import (
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteGroupsRequest,
    DeleteRecordsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
    DescribeGroupsRequest,
    ListGroupsRequest,
)
from kafka.protocol.consumer import FetchRequest, ListOffsetsRequest, OffsetCommitRequest, OffsetFetchRequest
from kafka.protocol.metadata import (
    ApiVersionsRequest,
    ApiVersionsResponse,
    FindCoordinatorRequest,
    MetadataRequest,
)
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    ProduceRequest,
    TxnOffsetCommitRequest,
)

from app.broker.handlers.fetch import fetch
from app.broker.handlers.groups import (
    delete_groups,
    describe_groups,
    list_groups,
    offset_commit,
    offset_fetch,
)
from app.broker.handlers.metadata import find_coordinator, metadata
from app.broker.handlers.offsets import delete_records, list_offsets
from app.broker.handlers.produce import produce
from app.broker.handlers.topics import create_partitions, create_topics, delete_topics, describe_configs
from app.broker.handlers.transactions import (
    add_offsets_to_txn,
    add_partitions_to_txn,
    end_txn,
    init_producer_id,
    txn_offset_commit,
)
from app.broker.state import BrokerState


class Api(NamedTuple):
    """One kind of request. The highest version is the last before topic ids, batched keys, and
    transactions that begin with their first record."""

    request: Any
    first_version: int
    last_version: int
    handle: Callable[[BrokerState, Any], Awaitable[Any]]

    @property
    def name(self) -> str:
        return str(self.request.name).removesuffix("Request")


async def api_versions(state: BrokerState, request: ApiVersionsRequest) -> ApiVersionsResponse:
    return supported_versions(error_code=0)


def supported_versions(error_code: int) -> ApiVersionsResponse:
    keys = [
        ApiVersionsResponse.ApiVersion(api_key=key, min_version=api.first_version, max_version=api.last_version)
        for key, api in APIS.items()
    ]
    return ApiVersionsResponse(error_code=error_code, api_keys=keys)


APIS: dict[int, Api] = {
    api.request.API_KEY: api
    for api in (
        Api(ProduceRequest, 0, 8, produce),  # older librdkafka compresses only where version 0 is offered
        Api(FetchRequest, 4, 11, fetch),
        Api(ListOffsetsRequest, 1, 6, list_offsets),
        Api(MetadataRequest, 0, 9, metadata),
        Api(OffsetCommitRequest, 2, 8, offset_commit),
        Api(OffsetFetchRequest, 1, 7, offset_fetch),
        Api(FindCoordinatorRequest, 0, 3, find_coordinator),
        Api(DescribeGroupsRequest, 0, 5, describe_groups),
        Api(ListGroupsRequest, 0, 4, list_groups),
        Api(ApiVersionsRequest, 0, 4, api_versions),
        Api(CreateTopicsRequest, 2, 4, create_topics),
        Api(DeleteTopicsRequest, 1, 5, delete_topics),
        Api(DeleteRecordsRequest, 0, 2, delete_records),
        Api(InitProducerIdRequest, 0, 4, init_producer_id),
        Api(AddPartitionsToTxnRequest, 0, 3, add_partitions_to_txn),
        Api(AddOffsetsToTxnRequest, 0, 3, add_offsets_to_txn),
        Api(TxnOffsetCommitRequest, 0, 3, txn_offset_commit),
        Api(EndTxnRequest, 0, 3, end_txn),
        Api(DescribeConfigsRequest, 1, 4, describe_configs),
        Api(CreatePartitionsRequest, 0, 3, create_partitions),
        Api(DeleteGroupsRequest, 0, 2, delete_groups),
    )
}

import pytest
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process pass for a replica: serve.batch asks for its context, also without a cluster."""
    monkeypatch.setattr(context, "_INTERNAL_REPLICA_CONTEXT", None)
    context._set_internal_replica_context(
        replica_id=ReplicaID("replica", DeploymentID("Scorer")),
        servable_object=None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=1024),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )

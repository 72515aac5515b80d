"""The API as a Serve deployment, and the root of the application: what it is bound to is deployed with it."""

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from app.api.access import token_from_environment
from app.api.backend import connect
from app.api.http import create_api
from app.api.status import StatusDocument, StatusUnavailableError
from app.config import PipelineArgs, load_pipeline
from app.process import settle_process


@serve.deployment(
    name="Ingress",
    ray_actor_options={"num_cpus": 0.1},
    max_ongoing_requests=1_000,
    health_check_period_s=1,
    health_check_timeout_s=3,
    graceful_shutdown_timeout_s=10,
)
@serve.ingress()
class Ingress:
    """Answers HTTP. Keeps nothing that matters: any number of replicas say the same.

    `others` are the deployments that it does not talk to; a Serve application holds what its root is bound to.
    """

    def __init__(self, args: PipelineArgs, coordinator: DeploymentHandle, *others: DeploymentHandle) -> None:
        self._coordinator = coordinator
        self._backend = connect(args, load_pipeline(args.pipeline), self._fetch_status)
        settle_process()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._backend, token_from_environment())

    async def _fetch_status(self) -> StatusDocument:
        try:
            document: StatusDocument = await self._coordinator.status.remote()
        except (RayError, RayServeException) as error:
            raise StatusUnavailableError(f"the coordinator does not answer: {error}") from error
        return document

    def check_health(self) -> None:
        """Raises when a thread that reads a log has ended: Serve then replaces this replica."""
        if not self._backend.alive:
            raise RuntimeError("a thread that reads a log has ended; its error stands in the log above")

"""What a server counts, for Prometheus. Every label has few values, whatever the clients send."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lm_requests", "Requests by route and HTTP status", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "lm_request_seconds", "Seconds of a request", ["route"], buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "lm_queue_seconds", "Seconds until a request's first input is computed", buckets=_SECONDS, registry=registry
        )
        self.first_token_seconds = Histogram(
            "lm_first_token_seconds", "Seconds until a sequence's first token", buckets=_SECONDS, registry=registry
        )
        self.token_seconds = Histogram(
            "lm_token_seconds", "Seconds for each further token of a sequence", buckets=_SECONDS, registry=registry
        )
        self.batch_tokens = Histogram(
            "lm_batch_tokens", "Tokens of an encoder's batch, without padding", buckets=_TOKENS, registry=registry
        )
        self.read_tokens = Counter("lm_read_tokens", "Tokens that were read, sources included", registry=registry)
        self.padding_tokens = Counter("lm_padding_tokens", "Padding in the batches of encoders", registry=registry)
        self.written_tokens = Counter("lm_written_tokens", "Tokens that were written", registry=registry)
        self.compilations = Counter("lm_compilations", "Programs compiled after the start", registry=registry)
        self.reloads = Counter("lm_reloads", "New checkpoints by result", ["model", "result"], registry=registry)
        self.faults = Counter("lm_faults", "Exceptions of computations", registry=registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is asked for at every scrape."""
        gauge = Gauge(name, text, registry=self.registry)
        gauge.set_function(value)

    def page(self) -> bytes:
        """Returns the counters in Prometheus' text format."""
        return generate_latest(self.registry)

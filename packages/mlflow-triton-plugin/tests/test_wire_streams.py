"""Streams of a server that does what the real one won't: other releases, silence, half answers."""

from __future__ import annotations

import itertools
import threading
from concurrent import futures
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mlflow_triton_plugin.server._stream import Answers

from .refusals import refused
from .waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INPUTS = {"x": np.zeros(1, np.float32)}


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers with one number a piece, as many as asked for, when it is let."""

    def __init__(self) -> None:
        self.version = "2.58.0"
        self.decoupled = True
        self.is_ours = False
        self.instances = 1
        self.pieces = 3
        self.error = ""
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.ended = threading.Event()
        self.is_left = False
        self.given: list[float] = []
        self.asked: list[Any] = []
        self.answers: Callable[[Any], Iterator[Any]] = self.numbers

    def ServerMetadata(self, *_: object) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    def ModelMetadata(self, *_: object) -> Any:  # noqa: N802
        tensors = [[{"name": name, "datatype": "FP32", "shape": [1]}] for name in ("x", "y")]
        return service_pb2.ModelMetadataResponse(inputs=tensors[0], outputs=tensors[1])

    def ModelConfig(self, *_: object) -> Any:  # noqa: N802
        answer = service_pb2.ModelConfigResponse()
        answer.config.model_transaction_policy.decoupled = self.decoupled
        if self.is_ours:
            answer.config.parameters["mlflow_streams"].string_value = "32"
        return answer

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        self.asked.append(next(requests))
        if "mlflow_stream_end" not in self.asked[-1].parameters:
            yield from self.answers(context)
        elif len(self.asked) <= self.instances:
            yield service_pb2.ModelStreamInferResponse(error_message="no such request here")
        else:
            self.is_left = True

    def numbers(self, context: Any) -> Iterator[Any]:
        context.add_callback(self.ended.set)
        for number in range(self.pieces):
            if number:
                wait_until(lambda: self.goes_on.is_set() or not context.is_active(), 30)
            if self.is_left or not context.is_active():
                return
            self.given.append(float(number))
            yield answer(number)
        if self.error:
            yield service_pb2.ModelStreamInferResponse(error_message=self.error)


def answer(number: float, shape: int = 1) -> Any:
    made = service_pb2.ModelStreamInferResponse()
    made.infer_response.model_version = "1"
    made.infer_response.outputs.add(name="y", datatype="FP32", shape=[shape])
    made.infer_response.raw_output_contents.append(np.float32(number).tobytes())
    return made


@pytest.fixture
def service(environment: Callable[..., None]) -> Iterator[Service]:
    made = Service()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    environment(TRITON_URL=f"127.0.0.1:{port}", TRITON_REQUEST_TIMEOUT="1")
    server.start()
    yield made
    made.goes_on.set()
    server.stop(None).wait()


def stream() -> Any:
    return get_deploy_client("triton").predict_stream("m", INPUTS)


def values(pieces: Any) -> list[float]:
    return [each["outputs"]["y"].item() for each in pieces]


def test_pieces_come_in_order(service: Service) -> None:
    assert values(stream()) == [0.0, 1.0, 2.0]
    assert not service.asked[0].parameters
    service.pieces = 0
    assert values(stream()) == []


def test_a_model_that_streams_no_longer_is_told_from_one_with_one_piece(service: Service) -> None:
    """By a client that has asked it before, as by one that has not."""
    service.pieces = 1
    client = get_deploy_client("triton")
    assert values(client.predict_stream("m", INPUTS)) == [0.0]
    service.decoupled = False
    for each in (client, get_deploy_client("triton")):
        refused(partial(each.predict_stream, "m", INPUTS), "BAD_REQUEST", "not in pieces")
    service.decoupled = True
    assert values(client.predict_stream("m", INPUTS)) == [0.0]


@pytest.mark.parametrize(
    ("version", "then"),
    [("2.58.0", "ends"), ("3.0.1", "ends"), ("2.57.0", "goes on"), ("odd", "goes on")],
)
def test_a_server_is_told_where_it_survives_it(service: Service, version: str, then: str) -> None:
    """Others come to their end, and go on answering: it is their answers that nobody reads."""
    service.version = version
    service.goes_on.clear()
    service.pieces = 40  # more than wait for a reader
    pieces = stream()
    assert values([next(pieces)]) == [0.0]
    pieces.close()
    if then == "ends":
        assert service.ended.wait(10)
        assert service.given == [0.0]
    else:
        service.goes_on.set()
        assert service.ended.wait(10)
        assert len(service.given) == service.pieces
    service.goes_on.set()
    service.pieces = 2
    assert values(stream()) == [0.0, 1.0]


@pytest.mark.parametrize("instances", [1, 3])
def test_a_model_of_ours_is_asked_to_end_where_a_server_may_not_be_told(
    service: Service, instances: int
) -> None:
    """Until it was the right one of its instances that was asked; and then no more."""
    service.version, service.is_ours, service.instances = "2.57.0", True, instances
    service.pieces = 10**9
    pieces = stream()
    assert values([next(pieces)]) == [0.0]
    pieces.close()
    assert service.ended.wait(30)
    first, *others = (each.parameters for each in service.asked)
    name = first["mlflow_stream_id"].string_param
    assert name
    assert [each["mlflow_stream_end"].string_param for each in others] == [name] * instances
    assert all(list(each) == ["mlflow_stream_end"] for each in others)


def test_two_who_leave_together_do_not_take_each_others_turns() -> None:
    """Triton gives its instances requests in turn: each would get the other's for ever."""
    turns = itertools.count(1)
    ended = [threading.Event(), threading.Event()]

    def end(instance: int) -> bool:
        if next(turns) % len(ended) == instance:
            ended[instance].set()
        return ended[instance].is_set()

    def ticking(instance: int) -> Iterator[int]:
        while not ended[instance].wait(0.01):
            yield instance

    answers = [Answers(ticking(each), partial(end, each)) for each in range(len(ended))]
    for each in answers:
        each.next(10)
    for each in answers:
        each.leave(cancels=False)
    wait_until(lambda: all(each.is_set() for each in ended), 15)


def test_a_server_that_survives_it_is_told_instead(service: Service) -> None:
    service.is_ours = True
    service.goes_on.clear()
    pieces = stream()
    assert values([next(pieces)]) == [0.0]
    pieces.close()
    assert service.ended.wait(10)
    assert len(service.asked) == 1


def test_who_reads_to_the_end_asks_for_none(service: Service) -> None:
    service.version, service.is_ours = "2.57.0", True
    assert values(stream()) == [0.0, 1.0, 2.0]
    assert len(service.asked) == 1


def test_silence_is_told_after_the_deadline_for_one_piece(service: Service) -> None:
    service.goes_on.clear()
    pieces = stream()
    assert values([next(pieces)]) == [0.0]
    refused(lambda: next(pieces), "DEADLINE_EXCEEDED", "within 1 s")


def test_a_slow_reader_gets_all_of_it(service: Service) -> None:
    service.pieces = 200
    pieces = stream()
    first = values([next(pieces)])
    threading.Event().wait(0.5)  # the queue is full meanwhile
    assert first + values(pieces) == [float(number) for number in range(200)]


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        (2, "", "gave 2 answers, where one was asked for; ask predict_stream"),
        (0, "", "gave 0 answers"),
        (1, "the model is tired", "refused the request: the model is tired"),
    ],
)
def test_one_answer_is_asked_for_and_no_other_number_taken(
    service: Service, pieces: int, error: str, words: str
) -> None:
    service.pieces, service.error = pieces, error
    client = get_deploy_client("triton")
    refused(lambda: client.predict("m", INPUTS), "BAD_REQUEST", words)
    assert service.asked[0].parameters["mlflow_stream"].bool_param is False
    service.pieces, service.error = 1, ""
    assert values([client.predict("m", INPUTS)]) == [0.0]


def test_a_server_that_ends_in_the_midst_is_unavailable(service: Service) -> None:
    def broken(context: Any) -> Iterator[Any]:
        yield answer(7)
        context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    service.answers = broken
    pieces = stream()
    assert values([next(pieces)]) == [7.0]
    refused(lambda: next(pieces), "TEMPORARILY_UNAVAILABLE", "going down")


def test_an_answer_that_is_none_is_told(service: Service) -> None:
    service.answers = lambda _: iter([answer(7, shape=4)])
    refused(stream, "TEMPORARILY_UNAVAILABLE", "answers, but not as Triton does")

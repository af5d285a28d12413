"""What is watched, as Prometheus scrapes it. Labels are devices, services, stages and the like, all of them bounded."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from services.metric import METRICS
from services.monitor.core.known import Device, Run
from services.monitor.core.watched import Watched

CONTENT_TYPE = CONTENT_TYPE_LATEST


def text(watched: Watched) -> bytes:
    """The exposition in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Watched(watched))
    return generate_latest(registry)


class _Watched:
    """A collector over what is watched now, as prometheus_client wants one."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def collect(self) -> Iterator[Metric]:
        """Each metric with the samples of all devices."""
        yield from _services(self.watched)
        yield from _counters(self.watched)
        yield from _runs(self.watched)


def _services(watched: Watched) -> Iterator[Metric]:
    online = GaugeMetricFamily("r2f_service_online", "Whether a service is on the bus.", labels=["device", "service"])
    memory = GaugeMetricFamily(
        "r2f_service_memory_bytes", "Resident memory of a service's process.", labels=["device", "service"]
    )
    version = GaugeMetricFamily("r2f_model_version", "Version of the model that a device runs.", labels=["device"])
    for device in watched.devices.values():
        for name, service in device.services.items():
            online.add_metric([device.name, name], service.online)
            if service.memory_bytes:
                memory.add_metric([device.name, name], service.memory_bytes)
        if "agent" in device.services:
            version.add_metric([device.name], device.services["agent"].version)
    refused = CounterMetricFamily("r2f_monitor_refused_messages", "Messages that made no sense and were left out.")
    refused.add_metric([], watched.refused)
    yield from (online, memory, version, refused)


def _counters(watched: Watched) -> Iterator[Metric]:
    iterations = CounterMetricFamily("r2f_iterations", "Iterations of training that were watched.", labels=["device"])
    link = CounterMetricFamily(
        "r2f_link_bytes",
        "Bytes on the link in training.",
        labels=["device", "direction", "of"],
    )
    direct = CounterMetricFamily(
        "r2f_link_direct_bytes", "Bytes that the same would have taken as it is.", labels=["device", "direction"]
    )
    stages = CounterMetricFamily(
        "r2f_stage_seconds",
        "Time of stages, measured or modelled.",
        labels=["device", "stage", "clock"],
    )
    repaired = CounterMetricFamily("r2f_repaired_elements", "Elements that a repair mended.", labels=["device"])
    for device, total in watched.totals.items():
        iterations.add_metric([device], total.iterations)
        repaired.add_metric([device], total.repaired)
        of = {"inputs": total.up_inputs, "layers": total.up_layers, "repairs": total.up_repairs}
        for name, count in of.items():
            link.add_metric([device, "up", name], count)
        link.add_metric([device, "down", "model"], total.down)
        direct.add_metric([device, "up"], total.up_direct)
        direct.add_metric([device, "down"], total.down_direct)
        for clock, seconds in (("host", total.host_s), ("device", total.device_s)):
            for stage, value in seconds.items():
                stages.add_metric([device, stage, clock], value)
    yield from (iterations, link, direct, stages, repaired)


def _runs(watched: Watched) -> Iterator[Metric]:
    loss = GaugeMetricFamily("r2f_loss", "Loss of the last iteration of the newest run.", labels=["device"])
    accuracy = GaugeMetricFamily(
        "r2f_accuracy_ratio",
        "Mean of the newest run's evaluations, 0 to 1, by the run's metric: top1, top5, miou or ssim.",
        labels=["device", "phase", "faults", "metric"],
    )
    psnr = GaugeMetricFamily(
        "r2f_psnr_decibels", "Mean PSNR of the newest run's evaluations.", labels=["device", "phase", "faults"]
    )
    error_rate = GaugeMetricFamily("r2f_bit_error_ratio", "Bit error rate that the device was told.", labels=["device", "site"])
    errors = GaugeMetricFamily("r2f_vote_error_ratio", "Share of voted elements that were wrong.", labels=["device"])
    agreed = GaugeMetricFamily(
        "r2f_vote_agreement_ratio", "Share of voted elements that all executions agreed on, newest run.", labels=["device"]
    )
    for device in watched.devices.values():
        if device.setting is not None:
            for site, rate in device.setting.rates.items():
                error_rate.add_metric([device.name, site], rate)
        run = newest(device)
        if run is None:
            continue
        if run.loss is not None:
            loss.add_metric([device.name], run.loss)
        for score in run.scores:
            if values := [value for value in score.values if value is not None]:
                of = [device.name, score.phase, str(score.faults).lower()]
                if run.metric == "psnr":  # in dB, and what has another unit has another name
                    psnr.add_metric(of, fmean(values))
                else:
                    share = 100 if METRICS[run.metric].unit == "%" else 1
                    accuracy.add_metric([*of, run.metric], fmean(values) / share)
        if voted := sum(layer.elements for layer in run.layers.values()):
            errors.add_metric([device.name], sum(layer.errors for layer in run.layers.values()) / voted)
        if compared := sum(layer.compared for layer in run.layers.values()):
            agreed.add_metric([device.name], sum(layer.agreed for layer in run.layers.values()) / compared)
    yield from (loss, accuracy, psnr, error_rate, errors, agreed)


def newest(device: Device) -> Run | None:
    """The run that was heard last; None for a device without any."""
    return max(device.runs.values(), key=lambda run: run.seen, default=None)

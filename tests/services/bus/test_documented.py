"""docs/bus.md is true: its tables are the code's, and its voter votes."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import numpy as np

from broker.launch import launch
from services.bus import Bus, describe, encoding
from services.bus.messages import LayerReplicas, Replicas, Voted

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "bus.md").read_text(encoding="utf-8")


def test_the_tables_are_the_codes() -> None:
    _, generated = PAGE.split(describe.MARK)
    assert generated == describe.markdown(), "run: python -m services.bus.describe docs/bus.md"


async def test_the_voter_without_our_code_votes(tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    program = tmp_path / "voter.py"
    program.write_text(found[1])
    replicas = np.random.default_rng(0).integers(-128, 128, (3, 2, 100, 100, 4), np.int8)
    layer = LayerReplicas(index=5, replicas=tuple(encoding.inline(replica) for replica in replicas))
    asked = Replicas(
        session="s", iteration=1, attempt=0, segment=2, mode="training", vote="median", layers=(layer,)
    )  # 240 kB: in chunks
    async with launch() as running, Bus(running.url(), "agent", "edge-0", arena_bytes=0) as agent:
        await agent.subscribe("edge/voted")
        voter = await asyncio.create_subprocess_exec(*(sys.executable, str(program), running.host, str(running.port), "edge-0"))
        try:
            for _ in range(50):  # until it has subscribed
                await agent.publish("edge/replicas", asked)
                try:
                    _, voted = await agent.receive(1.0)
                    break
                except TimeoutError:
                    continue
        finally:
            voter.terminate()
            await voter.wait()
    assert isinstance(voted, Voted)
    assert (voted.session, voted.iteration, voted.segment, voted.layers[0].index) == ("s", 1, 2, 5)
    assert voted.layers[0].vote is not None
    np.testing.assert_array_equal(encoding.view(voted.layers[0].vote), np.median(replicas, axis=0))
    np.testing.assert_array_equal(encoding.view(voted.layers[0].actual), replicas[0])

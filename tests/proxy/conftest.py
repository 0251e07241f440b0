"""Bridges with a database of their own, each with one client connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import ctx

from aibridge_addon.bridge import Bridge
from aibridge_addon.config.schema import Settings
from tests.support.scene import PROVIDERS, Scene

MakeScene = Callable[..., Scene]


@pytest.fixture
async def make_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeScene]:
    """Make scenes. The end of each flow must be reported exactly once."""
    scenes: list[Scene] = []

    def make(config: dict[str, Any] | None = None, **options: object) -> Scene:
        database = tmp_path / f"{len(scenes)}.db"
        defaults = {"database": f"sqlite:///{database}", "metrics": {"listen": None}, "providers": PROVIDERS}
        bridge = Bridge(Settings.model_validate(defaults | (config or {})))
        bridge.start()
        scene = Scene(bridge, database, **options)
        monkeypatch.setattr(ctx, "options", scene.layer.context.options, raising=False)
        scenes.append(scene)
        return scene

    yield make
    for scene in scenes:
        await scene.bridge.close(10)
        assert len(scene.bridge.in_flight) == 0, "the end of a flow was not reported"
        ended = [id(flow) for flow, _ in scene.ends]
        assert len(ended) == len(set(ended)), f"the end of a flow was reported twice: {scene.ends}"
        scene.playbook.expect_nothing()


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    return make_scene()


@pytest.fixture
def plain_chat(make_scene: MakeScene) -> Scene:
    """With chat streams left as they are."""
    return make_scene({"recording": {"ask_chat_usage": False}})

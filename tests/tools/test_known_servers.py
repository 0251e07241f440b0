"""Servers that others wrote, from PyPI and npm."""

import json

from aibridge_addon.config.schema import Mcp
from aibridge_addon.dialects.turns import Call, Media, Text
from aibridge_addon.tools.calls import invoke
from tests.support.mcp_servers import server_everything, server_time
from tests.tools.conftest import WITHIN, StartServers

SETTINGS = Mcp(tool_timeout=WITHIN)


async def test_mcp_server_time_tells_the_time(start: StartServers) -> None:
    stage = start({"time": server_time()})
    answer = json.loads(await stage.call("bmcp_time_get_current_time", timezone="UTC"))
    assert answer["timezone"] == "UTC"
    assert stage.catalog.names == {"bmcp_time_convert_time", "bmcp_time_get_current_time"}


async def test_mcp_server_time_refuses_a_zone_that_does_not_exist(start: StartServers) -> None:
    stage = start({"time": server_time()})
    asked = Call("1", "bmcp_time_get_current_time", {"timezone": "Moon/Sea"}, {})
    done = await invoke(stage.servers, await stage.tool(asked.name), asked, SETTINGS)
    assert done.result.is_error and done.error and "timezone" in done.error.lower()


async def test_server_everything_is_understood(start: StartServers) -> None:
    stage = start({"every": server_everything()})
    assert await stage.call("bmcp_every_echo", message="hi") == "Echo: hi"
    tools = {tool.original_name: tool for tool in stage.catalog.tools}
    assert tools["get-sum"].name == "bmcp_every_get-sum"
    assert "properties" in tools["get-sum"].input_schema

    async def parts(tool: str, **arguments: object) -> tuple[Text | Media, ...]:
        asked = Call("1", tools[tool].name, arguments, {})
        done = await invoke(stage.servers, tools[tool], asked, SETTINGS)
        assert done.error is None
        return done.result.parts

    image = next(part for part in await parts("get-tiny-image") if isinstance(part, Media))
    assert image.mime_type == "image/png"
    links = await parts("get-resource-links", count=2)
    assert sum(isinstance(part, Text) and part.text.startswith("[Link to the resource") for part in links) == 2
    resource = await parts("get-resource-reference", resourceType="Text", resourceId=1)
    assert any(isinstance(part, Text) and part.text.startswith("[Resource demo://") for part in resource)
    assert len(await parts("get-structured-content", location="New York")) == 1

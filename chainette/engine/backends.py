"""The list of backends: built-in ones, and those of plugins. A backend is one class (`base.Engine`) and its name here.

A plugin is a distribution with entry points of the group `chainette.backends`, each a name and a `module:Class`.
A backend is imported only when an engine that uses it is declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from chainette.engine.base import Engine, Options
from chainette.errors import EngineConfigError, PluginError
from chainette.utils.argument_advice import nearest
from chainette.utils.plugins import Group

__all__ = ["BUILT_IN", "backend_class", "backend_names", "maker_of"]

#: Name of a built-in backend -> `module:Class`.
BUILT_IN: Mapping[str, str] = {
    "vllm": "chainette.engine.vllm.async_llm:VllmEngine",
    "openai": "chainette.engine.http.openai:OpenAIEngine",
    "ollama": "chainette.engine.http.ollama:OllamaEngine",
    "llama_cpp": "chainette.engine.llama_cpp.server:LlamaCppEngine",
    "simulated": "chainette.engine.simulated.simulator:SimulatedEngine",
}

_PLUGINS = Group("chainette.backends", "backend")

_SERVER = "backend 'openai' with the endpoint of the server"
_IN_PROCESS = "backend 'vllm' for a model in this process, or 'openai' with the endpoint of a server (`vllm serve`)"

#: Names of backends in other libraries -> advice. Spelled in lower case with "_".
_HINTS: Mapping[str, str] = (
    dict.fromkeys(("vllm_api", "vllm_server", "vllm_openai", "vllm_serve", "vllm_local", "vllm_offline"), _IN_PROCESS)
    | dict.fromkeys(("hf", "huggingface", "hugging_face", "transformers", "torch", "pytorch", "local"), _IN_PROCESS)
    | dict.fromkeys(("llamacpp", "gguf", "llama_cpp_python", "ggml"), "backend 'llama_cpp' with the path of the .gguf file")
    | dict.fromkeys(("llama_server", "llama_cpp_server", "lmstudio", "lm_studio", "llamafile", "localai"), _SERVER)
    | dict.fromkeys(("tgi", "sglang", "sgl", "mlx", "mlx_lm", "litellm", "trtllm", "tensorrt_llm", "nim", "lmdeploy"), _SERVER)
    | dict.fromkeys(("openai_api", "openai_compatible", "openai_like", "chatgpt", "gpt", "api", "http", "server"), _SERVER)
    | dict.fromkeys(("mistral", "deepseek", "fireworks", "xai", "cohere", "perplexity", "bedrock", "databricks"), _SERVER)
    | dict.fromkeys(("ollama_api", "ollama_chat"), "backend 'ollama'")
    | dict.fromkeys(("fake", "mock", "dummy", "test", "stub", "simulate", "simulation"), "backend 'simulated'")
    | {
        name: f"backend 'openai' with endpoint={url!r}"
        for names, url in (
            (("azure", "azure_openai"), "https://RESOURCE.openai.azure.com/openai/v1"),
            (("anthropic", "claude"), "https://api.anthropic.com/v1"),
            (("gemini", "google", "vertex", "vertexai"), "https://generativelanguage.googleapis.com/v1beta/openai"),
            (("openrouter",), "https://openrouter.ai/api/v1"),
            (("together", "togetherai", "together_ai"), "https://api.together.xyz/v1"),
            (("groq",), "https://api.groq.com/openai/v1"),
        )
        for name in names
    }
)


def backend_names() -> list[str]:
    """Every backend: the built-in ones, then those of plugins."""
    return [*BUILT_IN, *(name for name in _PLUGINS.names() if name not in BUILT_IN)]


def maker_of(name: str) -> str:
    """The distribution a backend comes from, with its version."""
    return "chainette" if name in BUILT_IN else _PLUGINS.maker_of(name)


def backend_class(name: str) -> type[Engine]:
    """The class of a backend, imported.

    Raises:
        EngineConfigError: there is no such backend, or its plugin is broken; the message names the plugin.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: type[Engine] = getattr(import_module(module), attribute)
        return found
    if name not in _PLUGINS.names():
        raise EngineConfigError(f"unknown backend {name!r}{_advice(name)}")
    try:
        plugged, whose = _PLUGINS.load(name)
    except PluginError as error:
        raise EngineConfigError(str(error)) from error
    if not (isinstance(plugged, type) and issubclass(plugged, Engine) and issubclass(plugged.options, Options)):
        raise EngineConfigError(f"{whose} is not a class derived from chainette.Engine with its Options")
    return plugged


def _advice(name: str) -> str:
    hint = _HINTS.get("".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name.lower()))
    return f"; write {hint}" if hint else nearest(name, backend_names())

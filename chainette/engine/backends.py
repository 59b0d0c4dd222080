"""The backends, and the keys that each adds to an engine's configuration."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = [
    "BACKENDS",
    "BACKEND_HINTS",
    "HttpOptions",
    "LlamaCppOptions",
    "OllamaOptions",
    "OpenAIOptions",
    "Options",
    "SimulatedOptions",
    "VllmOptions",
]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that only one backend knows."""


class SimulatedOptions(Options, frozen=True):
    #: Seconds per request.
    latency: float = 0.0
    #: Share of answers that do not validate, drawn from the request's seed.
    invalid_rate: float = 0.0
    #: Share of calls that raise EngineUnavailable, drawn from the request's seed.
    error_rate: float = 0.0
    #: Seconds that loading takes.
    load: float = 0.0


class HttpOptions(Options, frozen=True):
    #: Seconds a request may take before it is tried again.
    request_timeout: float = 600.0
    #: Tries of one request after 429, 5xx, a broken connection or a timeout.
    max_retries: int = 6
    #: Extra HTTP headers; `${NAME}` is read from the environment where the engine opens.
    headers: dict[str, str] = {}


class OpenAIOptions(HttpOptions, frozen=True):
    #: "json_schema", "json_object" (the schema is in the prompt only) or "none".
    response_format: str = "json_schema"
    #: OpenAI's strict dialect of JSON Schema; what it cannot say is left to validation.
    strict: bool | None = None


class OllamaOptions(HttpOptions, frozen=True):
    #: How long Ollama keeps the model loaded after a request, in its own notation.
    keep_alive: str | None = None
    #: Context length.
    num_ctx: int | None = None


class LlamaCppOptions(Options, frozen=True):
    #: CPU threads.
    threads: int = 1
    #: Tokens of context for each slot.
    n_ctx: int = 2048
    #: Model layers put on the GPU.
    n_gpu_layers: int = 0


class VllmOptions(Options, frozen=True):
    #: "auto" is the model's own, and float32 on a CPU without AMX.
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    #: Tokens of prompt and answer together; None: what the model was made for.
    max_model_len: int | None = None
    #: Requests that are computed at once; None: `capacity`, else vLLM's own choice.
    max_num_seqs: int | None = None
    #: GPUs that share the model; None: as many as `gpu_ids` names.
    tensor_parallel_size: int | None = None
    quantization: str | None = None
    enable_prefix_caching: bool = True
    #: One of vLLM's parsers, for models that think aloud before they answer.
    reasoning_parser: str | None = None
    #: A LoRA adapter: a folder or a Hugging Face id.
    lora: str | None = None
    #: Of what vLLM draws for itself; rows have seeds of their own.
    seed: int | None = None
    trust_remote_code: bool = False
    #: Never ask the Hugging Face hub; a model that is a folder never does.
    offline: bool = False
    #: No compilation; None: compiled on a GPU, not on a CPU.
    enforce_eager: bool | None = None
    #: "dummy" draws random weights, for measurements.
    load_format: str = "auto"
    #: A Jinja template, or a file of one, in the place of the tokenizer's.
    chat_template: str | None = None
    #: CPU threads; None: OMP_NUM_THREADS, else all cores but one.
    threads: int | None = None


_SERVER = "backend 'openai' with the endpoint of the server"
_IN_PROCESS = "backend 'vllm' for a model in this process, or 'openai' with the endpoint of a server (`vllm serve`)"

#: What people call a backend elsewhere -> what to write here. Spelled in lower case with "_".
BACKEND_HINTS: Mapping[str, str] = (
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

#: Backend name -> the keys that it adds.
BACKENDS: Mapping[str, type[Options]] = {
    "vllm": VllmOptions,
    "openai": OpenAIOptions,
    "ollama": OllamaOptions,
    "llama_cpp": LlamaCppOptions,
    "simulated": SimulatedOptions,
}

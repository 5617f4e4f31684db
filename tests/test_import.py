"""What importing the package does, and does not do."""

import subprocess
import sys

import torch

import fastinfer


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = [
        "accelerate",
        "matplotlib",
        "onnxruntime",
        "scipy",
        "tensorboard",
        "torch._inductor",
        "transformers",
    ]
    out = run(f"import sys, fastinfer; print(sorted({{*{heavy}}} & sys.modules.keys()))")
    assert out == "[]"


def test_import_and_use_change_no_floating_point_mode():
    out = run(
        "import ctypes, numpy, torch\n"
        "def mode():\n"
        "    tiny = numpy.float32(1e-40)\n"
        "    tensor = torch.full((64,), 1e-40)\n"
        "    return (ctypes.CDLL('libm.so.6').fegetround(), tiny * numpy.float32(0.5) > 0,\n"
        "            bool((tensor * 0.5 > 0).all()), torch.get_default_dtype(),\n"
        "            torch.get_num_threads(), torch.get_float32_matmul_precision())\n"
        "before = mode()\n"
        "import fastinfer\n"
        "after_import = mode()\n"
        "layer = fastinfer.quantize_linear(torch.nn.Linear(64, 64))\n"
        "layer(torch.full((40, 64), 1e-40))\n"
        "assert before[1:3] == (True, True), before\n"
        "print(before == after_import == mode())"
    )
    assert out == "True"


def test_a_torch_that_is_too_old_is_named():
    out = run(
        "import torch\n"
        "def refuse(path): raise OSError('undefined symbol: aoti_torch_something')\n"
        "torch.ops.load_library = refuse\n"
        "try:\n"
        "    import fastinfer\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert out.startswith("fastinfer needs torch>=2.11")
    assert f"torch {torch.__version__}" in out
    assert "aoti_torch_something" in out


def test_public_names_exist():
    assert all(hasattr(fastinfer, name) for name in fastinfer.__all__)
    assert {"quantize_linear", "nn", "ops", "__version__"} <= set(fastinfer.__all__)

#!/usr/bin/env python3
"""A real teacher, asked by NVIDIA's unmodified tritonclient: sync, async, aio, stream, errors, clients that vanish. Then the example of
examples/python. Exit code 77: skipped, with the reason on standard error."""
import argparse
import asyncio
import gzip
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

try:
    import numpy as np
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio
    from tritonclient.utils import InferenceServerException
except ImportError as error:
    print(f"skipped: {error}; scripts/setup.sh installs it", file=sys.stderr)
    sys.exit(77)

FASHION = "/usr/share/datasets/fashion-mnist"
PATIENCE = 60  # seconds; no right server comes near it
FLAGS = None


def read_idx(name):
    with gzip.open(f"{FASHION}/{name}-ubyte.gz", "rb") as file:
        data = file.read()
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


class Teacher:
    def __init__(self, *flags):
        self.folder = tempfile.TemporaryDirectory()
        ready, log = (os.path.join(self.folder.name, name) for name in ("ready", "log"))
        self.log = open(log, "wb")
        self.process = subprocess.Popen(
            [
                os.path.join(FLAGS.bin, "distill-teacher"),
                "--model=fashion=" + os.path.join(FLAGS.source, "examples/teachers/fashion-resnet20.safetensors"),
                "--threads=1",
                "--device=cpu",
                "--ready-file=" + ready,
                *flags,
            ],
            stdout=self.log,
            stderr=self.log,
        )
        while not os.path.exists(ready):
            if self.process.poll() is not None:
                raise AssertionError("the teacher ended: " + open(log, encoding="utf-8").read())
            time.sleep(0.02)
        with open(ready, encoding="utf-8") as lines:
            told = dict(line.strip().split("=", 1) for line in lines)
        self.address, self.http = told["address"], told["http"]

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=PATIENCE) as page:
            found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", page.read().decode(), re.M)
        return float(found.group(1)) if found else 0.0

    def stop(self):
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        self.log.close()
        self.folder.cleanup()
        return code


def images_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 28, 28), np.uint8)


def pixels_of(images, module=triton):
    tensor = module.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return [tensor]


def outputs_of(names, module=triton):
    return [module.InferRequestedOutput(name) for name in names]


ALONE = {"exclusive": True}  # so that answers repeat bit for bit


class TritonClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.teacher = Teacher()

    @classmethod
    def tearDownClass(cls):
        assert cls.teacher.stop() == 128 + signal.SIGTERM

    def setUp(self):
        self.client = triton.InferenceServerClient(self.teacher.address)
        self.addCleanup(self.client.close)

    def expect_idle(self):
        end = time.monotonic() + PATIENCE
        names = ("distill_teacher_streams", "distill_teacher_memory_budget_used_bytes", "distill_teacher_queue_length")
        while any(self.teacher.metric(name) != 0 for name in names):
            self.assertLess(time.monotonic(), end, {name: self.teacher.metric(name) for name in names})
            time.sleep(0.1)

    def expect_error(self, code, text, call):
        with self.assertRaises(InferenceServerException) as caught:
            call()
        self.assertEqual(caught.exception.status(), f"StatusCode.{code}")
        self.assertIn(text, caught.exception.message())

    def infer(self, images, names=("output", "layer3"), **options):
        return self.client.infer("fashion", pixels_of(images), outputs=outputs_of(names), **options)

    def test_tells_about_itself(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready("fashion"))
        self.assertFalse(self.client.is_model_ready("other"))
        self.assertEqual(self.client.get_server_metadata().name, "distillery")
        metadata = self.client.get_model_metadata("fashion", as_json=True)
        self.assertEqual(metadata["inputs"], [{"name": "images", "datatype": "UINT8", "shape": ["-1", "1", "28", "28"]}])
        shapes = {output["name"]: output["shape"] for output in metadata["outputs"]}
        self.assertEqual(shapes["output"], ["-1", "10"])
        self.assertEqual(shapes["layer3"], ["-1", "64", "7", "7"])
        config = self.client.get_model_config("fashion").config
        self.assertEqual(config.max_batch_size, 4096)
        self.assertEqual(config.parameters["mean"].string_value, "0.286")

    def test_answers_are_the_same_by_every_way(self):
        images = [images_of(n, seed=n) for n in (1, 2, 7, 64)]
        expected = [self.infer(batch, parameters=ALONE) for batch in images]
        self.assertEqual(expected[3].as_numpy("layer3").shape, (64, 64, 7, 7))
        self.assertEqual(expected[3].as_numpy("layer3").dtype, np.float32)

        def check(result, i):
            for name in ("output", "layer3"):
                np.testing.assert_array_equal(result.as_numpy(name), expected[i].as_numpy(name))

        with self.subTest("async"):
            answers = queue.Queue()
            for i, batch in enumerate(images):
                self.client.async_infer(
                    "fashion",
                    pixels_of(batch),
                    lambda result, error: answers.put((result, error)),
                    outputs=outputs_of(("output", "layer3")),
                    request_id=str(i),
                    parameters=ALONE,
                )
            for _ in images:
                result, error = answers.get(timeout=PATIENCE)
                self.assertIsNone(error)
                check(result, int(result.get_response().id))
        with self.subTest("stream"):
            answers = queue.Queue()
            self.client.start_stream(lambda result, error: answers.put((result, error)))
            for i, batch in enumerate(images):
                self.client.async_stream_infer(
                    "fashion",
                    pixels_of(batch),
                    outputs=outputs_of(("output", "layer3")),
                    request_id=str(i),
                    parameters=ALONE,
                    enable_empty_final_response=i == 2,
                )
            for i in range(len(images)):  # in order
                result, error = answers.get(timeout=PATIENCE)
                self.assertIsNone(error)
                self.assertEqual(result.get_response().id, str(i))
                check(result, i)
            self.client.stop_stream()
        with self.subTest("aio"):

            async def both():
                async with triton_aio.InferenceServerClient(self.teacher.address) as client:
                    outputs = outputs_of(("output", "layer3"), triton_aio)
                    ask = lambda batch: client.infer(
                        "fashion", pixels_of(batch, triton_aio), outputs=outputs, parameters=ALONE
                    )
                    for i, result in enumerate(await asyncio.gather(*map(ask, images))):
                        check(result, i)

                    async def requests():
                        for i, batch in enumerate(images):
                            yield {
                                "model_name": "fashion",
                                "inputs": pixels_of(batch, triton_aio),
                                "outputs": outputs,
                                "request_id": str(i),
                                "parameters": ALONE,
                            }

                    i = 0
                    async for result, error in client.stream_infer(requests()):
                        self.assertIsNone(error)
                        check(result, i)
                        i += 1
                    self.assertEqual(i, len(images))

            asyncio.run(asyncio.wait_for(both(), PATIENCE))

    def test_without_outputs_it_is_the_networks_own(self):
        result = self.client.infer("fashion", pixels_of(images_of(2)))
        self.assertEqual([output.name for output in result.get_response().outputs], ["output"])

    def test_sixteen_bits(self):
        images = images_of(4)
        exact = self.infer(images, parameters=ALONE).as_numpy("layer3")
        for datatype, error in (("FP16", 1e-3), ("BF16", 1e-2)):
            half = self.infer(images, parameters={**ALONE, "output_datatype": datatype})
            self.assertEqual(half.get_output("layer3").datatype, datatype)
            np.testing.assert_allclose(half.as_numpy("layer3").astype(np.float32), exact, rtol=error, atol=1e-6)

    def test_the_teacher_knows_fashion(self):
        if not os.path.isdir(FASHION):
            self.skipTest(f"no {FASHION}")
        images, labels = read_idx("t10k-images-idx3")[:1000, None], read_idx("t10k-labels-idx1")[:1000]
        right = self.infer(np.ascontiguousarray(images)).as_numpy("output").argmax(1) == labels
        self.assertGreater(right.mean(), 0.9)

    def test_errors_have_their_codes(self):
        two = images_of(2)
        infer = self.client.infer
        self.expect_error("NOT_FOUND", "served: fashion", lambda: infer("fasion", pixels_of(two)))
        self.expect_error("NOT_FOUND", "no version '3'", lambda: infer("fashion", pixels_of(two), model_version="3"))
        self.expect_error("NOT_FOUND", "served: fashion", lambda: self.client.get_model_metadata("other"))
        self.expect_error("NOT_FOUND", "served: fashion", lambda: self.client.get_model_config("other"))
        self.expect_error("INVALID_ARGUMENT", "did you mean 'layer3'", lambda: self.infer(two, ["layr3"]))
        self.expect_error("INVALID_ARGUMENT", "[N, 1, 28, 28]", lambda: self.infer(two.reshape(2, 28, 28, 1)))
        self.expect_error("INVALID_ARGUMENT", "no sequences", lambda: self.infer(two, sequence_id=5))
        self.expect_error("INVALID_ARGUMENT", "no parameter 'temperature'", lambda: self.infer(two, parameters={"temperature": 4}))
        digest = {"model_digest": "0" * 64}
        self.expect_error("FAILED_PRECONDITION", "has digest", lambda: self.infer(two, parameters=digest))
        floats = triton.InferInput("images", [2, 1, 28, 28], "FP32")
        floats.set_data_from_numpy(two.astype(np.float32))
        self.expect_error("INVALID_ARGUMENT", "send UINT8 pixels", lambda: infer("fashion", [floats]))
        self.expect_error("UNIMPLEMENTED", "", lambda: self.client.get_model_repository_index())
        # A stream outlives the errors of its requests.
        answers = queue.Queue()
        self.client.start_stream(lambda result, error: answers.put((result, error)))
        for name in ("no", "fashion"):
            self.client.async_stream_infer(name, pixels_of(two))
        self.assertIn("NOT_FOUND", str(answers.get(timeout=PATIENCE)[1]))
        self.assertIsNotNone(answers.get(timeout=PATIENCE)[0])
        self.client.stop_stream()
        self.infer(two)

    def test_cancel_and_deadline(self):
        many = images_of(4096)
        before = self.teacher.metric("distill_teacher_images_total")
        answers = queue.Queue()
        calls = [
            self.client.async_infer("fashion", pixels_of(many), lambda result, error: answers.put(error)) for _ in range(8)
        ]
        for call in calls:
            call.cancel()
        self.expect_error("DEADLINE_EXCEEDED", "", lambda: self.infer(many, client_timeout=0.05))
        for _ in calls:
            self.assertIn("CANCELLED", str(answers.get(timeout=PATIENCE).status()))
        self.expect_idle()
        self.assertLess(self.teacher.metric("distill_teacher_images_total") - before, 8 * 4096)
        self.infer(images_of(1))

    def test_a_client_is_killed(self):
        script = (
            "import sys, numpy as np, tritonclient.grpc as triton\n"
            "client = triton.InferenceServerClient(sys.argv[1])\n"
            "tensor = triton.InferInput('images', [512, 1, 28, 28], 'UINT8')\n"
            "tensor.set_data_from_numpy(np.zeros((512, 1, 28, 28), np.uint8))\n"
            "outputs = [triton.InferRequestedOutput('layer1')]\n"
            "client.start_stream(lambda result, error: print('answer', flush=True))\n"
            "while True: client.async_stream_infer('fashion', [tensor], outputs=outputs)\n"
        )
        for stop_first in (False, True):
            with subprocess.Popen(
                [sys.executable, "-c", script, self.teacher.address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as client:
                client.stdout.readline()
                if stop_first:  # it reads no more, with answers under way
                    client.send_signal(signal.SIGSTOP)
                    time.sleep(0.5)
                client.kill()
            self.expect_idle()
        self.infer(images_of(1))

    def test_statistics(self):
        before = self.client.get_inference_statistics("fashion").model_stats[0]
        self.infer(images_of(3))
        after = self.client.get_inference_statistics("fashion").model_stats[0]
        self.assertEqual(after.inference_count - before.inference_count, 3)
        self.assertEqual(after.inference_stats.success.count - before.inference_stats.success.count, 1)
        self.assertGreater(after.inference_stats.compute_infer.ns, before.inference_stats.compute_infer.ns)

    def test_the_example_learns(self):
        if not os.path.isdir(FASHION):
            self.skipTest(f"no {FASHION}")
        example = os.path.join(FLAGS.source, "examples/python/distill_with_tritonclient.py")
        run = subprocess.run(
            [sys.executable, example, "--teacher", self.teacher.address, "--steps", "30", "--batch", "64"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", run.stdout)]
        self.assertEqual(len(losses), 4, run.stdout)
        self.assertLess(losses[-1], 0.8 * losses[0], run.stdout)


class TokenTest(unittest.TestCase):
    def test_the_token_is_the_feature_streams(self):
        with tempfile.NamedTemporaryFile("w") as token:
            token.write("sesame")
            token.flush()
            teacher = Teacher("--token-file=" + token.name)
            try:
                with triton.InferenceServerClient(teacher.address) as client:
                    with self.assertRaises(InferenceServerException) as caught:
                        client.infer("fashion", pixels_of(images_of(1)))
                    self.assertEqual(caught.exception.status(), "StatusCode.UNAUTHENTICATED")
                    client.infer("fashion", pixels_of(images_of(1)), headers={"authorization": "Bearer sesame"})
            finally:
                teacher.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--source", required=True)
    FLAGS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)

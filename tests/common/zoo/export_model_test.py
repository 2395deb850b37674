"""scripts/export_model.py on networks written here, and on torchvision's and timm's where they are installed.

usage: export_model_test.py PATH/export_model.py    (exit code 77: torch is not there)
"""
import contextlib
import importlib.util
import io
import os
import sys
import tempfile
import unittest
import warnings

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    sys.exit(77)

SPEC = importlib.util.spec_from_file_location("export_model", sys.argv[1])
export_model = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(export_model)


class Drop(nn.Module):
    """Stochastic depth: other code in training than in eval mode."""

    def forward(self, x):
        if self.training:
            return x * torch.bernoulli(torch.full([x.shape[0], 1, 1, 1], 0.5))
        return x


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.drop = Drop()

    def forward(self, x):
        y = self.drop(self.bn(self.conv(x)))
        y += x
        return F.relu(y, inplace=True)


class Net(nn.Module):
    def __init__(self, classes=5, p=0.3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.layer2 = nn.Sequential(Block(16))
        self.fc = nn.Linear(16, classes)
        self.p = p

    def forward(self, x):
        x = self.layer2(self.down(self.layer1(self.stem(x))))
        x = x.mean([2, 3])
        return self.fc(F.dropout(x, self.p, training=self.training))


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 12))
        self.blocks = nn.Sequential(*[nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.GELU()) for _ in range(2)])
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.blocks(x)[:, 0])


class Odd(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.fc, self.same = how, nn.Linear(3 * 32 * 24, 5), nn.Conv2d(3, 3, 1)
        if how == "half":
            self.half()

    def forward(self, x):
        if self.how == "branch" and x.sum() > 0:
            x = -x
        if self.how == "twice":
            x = self.same(self.same(x))
        if self.how == "batch":
            return self.fc(x.reshape(2, 3 * 32 * 24))
        if self.how == "map":
            return x.sum()
        return self.fc(x.flatten(1))


class ExportModelTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "net.pt")
        sys.modules["nets_of_this_test"] = sys.modules[__name__]

    def tearDown(self):
        self.folder.cleanup()

    def run_script(self, *arguments, image="32x24"):
        """(exit code, what it printed)"""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = export_model.main([*arguments, "--image", image, "--output", self.path])
        return code, out.getvalue() + err.getvalue()

    def export(self, *arguments, image="32x24"):
        code, text = self.run_script(*arguments, image=image)
        self.assertEqual(code, 0, text)
        with open(self.path + ".yaml", encoding="utf-8") as sidecar:
            return torch.jit.load(self.path), sidecar.read()

    def refusal(self, *arguments):
        code, text = self.run_script(*arguments)
        self.assertEqual(code, 1, text)
        self.assertFalse(os.path.exists(self.path))
        return text

    def test_taps_stages_and_names_are_the_networks(self):
        archive, sidecar = self.export("nets_of_this_test:Net", "--args", '{"classes": 7}', "--mean", "0.4", "0.5", "0.6")
        self.assertEqual(set(archive.state_dict()), set(Net(7).state_dict()))
        for line in ("image: 32x24", "mean: [0.4, 0.5, 0.6]", "std: [1.0, 1.0, 1.0]", 'stages: ["layer1", "layer2"]',
                     '  "layer2": [16, 16, 12]  # stride 2'):
            self.assertIn(line + "\n", sidecar)
        archive.eval()
        outputs = archive(torch.rand(4, 3, 32, 24))
        self.assertEqual(list(outputs)[-1], "output")
        self.assertEqual(outputs["output"].shape, (4, 7))
        self.assertEqual(outputs["layer1.0"].shape, (4, 8, 32, 24))

    def test_modes_follow_train_and_eval_module_by_module(self):
        archive, _ = self.export("nets_of_this_test:Net")
        x = torch.rand(4, 3, 32, 24)
        archive.train()
        self.assertFalse(torch.equal(archive(x)["output"], archive(x)["output"]))  # dropout, stochastic depth
        before = getattr(archive.layer2, "0").bn.running_mean.clone()
        archive(x)
        self.assertFalse(torch.equal(before, getattr(archive.layer2, "0").bn.running_mean))
        archive.layer2.eval()
        before = getattr(archive.layer2, "0").bn.running_mean.clone()
        archive(x)
        self.assertTrue(torch.equal(before, getattr(archive.layer2, "0").bn.running_mean))
        archive.eval()
        self.assertTrue(torch.equal(archive(x)["output"], archive(x)["output"]))

    def test_taps_keep_what_in_place_layers_would_overwrite(self):
        archive, _ = self.export("nets_of_this_test:Net", "--taps", "stem.1", "stem", "**.bn")
        archive.eval()
        outputs = archive(torch.randn(2, 3, 32, 24))
        self.assertTrue(bool((outputs["stem.1"] < 0).any()))
        self.assertTrue(torch.equal(outputs["stem"], outputs["stem.1"].relu()))
        self.assertIn("layer1.0.bn", outputs)

    def test_tokens_become_maps_without_the_class_token(self):
        torch.manual_seed(3)
        archive, sidecar = self.export("nets_of_this_test:Vit", "--tokens", "map", "--taps", "blocks.*",
                                       "--stages", "blocks.1")
        self.assertIn('"blocks.0": [12, 4, 3]  # stride 8', sidecar)
        self.assertIn('stages: ["blocks.1"]', sidecar)
        self.assertIn("cls_token", archive.state_dict())
        net = Vit()
        net.load_state_dict(archive.state_dict())
        x = torch.rand(2, 3, 32, 24)
        tokens = torch.cat([net.cls_token.expand(2, -1, -1), net.patch(x).flatten(2).transpose(1, 2)], 1)
        expected = net.blocks[0](tokens)[:, 1:]
        got = archive(x)["blocks.0"]
        self.assertTrue(torch.allclose(got[:, :, 1, 2], expected[:, 5], atol=1e-6))
        self.assertIn("--tokens map", self.refusal_of_existing("nets_of_this_test:Vit", "--taps", "blocks.*"))

    def refusal_of_existing(self, *arguments):
        os.unlink(self.path)
        return self.refusal(*arguments)

    def test_what_cannot_be_exported_is_refused_with_the_reason(self):
        odd = lambda how: ("nets_of_this_test:Odd", "--args", '{"how": "%s"}' % how)
        self.assertIn("torch.fx cannot read the network", self.refusal(*odd("branch")))
        self.assertIn("is torch.float16; call .float()", self.refusal(*odd("half")))
        self.assertIn("became a constant", self.refusal(*odd("batch")))
        self.assertIn("runs several times", self.refusal(*odd("twice"), "--taps", "same"))
        self.assertIn("network's output is", self.refusal(*odd("map")))
        self.assertIn("matches no module", self.refusal("nets_of_this_test:Net", "--taps", "layer9"))
        self.assertIn("has no 'Nothing'", self.refusal("nets_of_this_test:Nothing"))
        self.assertIn("cannot import 'no_such_module'", self.refusal("no_such_module:x"))
        self.assertIn("--args is no JSON", self.refusal("nets_of_this_test:Net", "--args", "{"))
        self.assertIn("--mean has 1 values for 3 channels", self.refusal("nets_of_this_test:Net", "--mean", "0.5"))

    def test_weights_come_from_a_file_and_misfits_are_named(self):
        net = Net()
        weights = os.path.join(self.folder.name, "w.pt")
        torch.save({"state_dict": {"module." + key: value for key, value in net.state_dict().items()}}, weights)
        archive, _ = self.export("nets_of_this_test:Net", "--weights", weights)
        self.assertTrue(torch.equal(archive.state_dict()["fc.weight"], net.fc.weight))
        self.assertIn("does not fit the network", self.refusal_of_existing("nets_of_this_test:Net", "--args",
                                                                            '{"classes": 3}', "--weights", weights))

    def test_serving_takes_the_network_as_it_is_in_eval_mode(self):
        archive, sidecar = self.export("nets_of_this_test:Net", "--for", "serving")
        self.assertIn("for serving", sidecar)
        x = torch.rand(2, 3, 32, 24)
        self.assertTrue(torch.equal(archive(x)["output"], archive(x)["output"]))

    def test_torchvisions_networks(self):
        try:
            import torchvision  # noqa: F401
        except ImportError:
            self.skipTest("torchvision is not installed")
        for name in ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"):
            with self.subTest(name):
                archive, sidecar = self.export(f"torchvision.models:{name}", "--args", '{"num_classes": 4}',
                                               image="64x64")
                theirs = getattr(sys.modules["torchvision"].models, name)(num_classes=4)
                self.assertEqual(set(archive.state_dict()), set(theirs.state_dict()))
                self.assertIn("stages: [", sidecar)
        _, sidecar = self.export("torchvision.models.segmentation:fcn_resnet50", "--args",
                                 '{"num_classes": 4, "weights": null, "weights_backbone": null}', image="64x64")
        self.assertIn("# 32", sidecar)
        self.assertNotIn("classifier", sidecar.split("stages: ")[1].split("\n")[0])

    def test_timms_networks(self):
        try:
            import timm  # noqa: F401
        except ImportError:
            self.skipTest("timm is not installed")
        archive, _ = self.export("timm:create_model", "--args", '{"model_name": "vit_tiny_patch16_224"}', "--tokens",
                                 "map", "--taps", "blocks.*", image="224x224")
        archive.eval()
        self.assertEqual(archive(torch.rand(1, 3, 224, 224))["blocks.11"].shape, (1, 192, 14, 14))
        self.export("timm:create_model", "--args", '{"model_name": "efficientnet_lite0"}', image="64x64")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch calls its TorchScript deprecated with every file
    unittest.main(argv=sys.argv[:1], warnings="ignore")

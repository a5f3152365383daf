"""Settings are changed in the text; everything else stays as it was written."""

import pytest

from mailsrv import config
from mailsrv.installation.edit import set_values

CASES = {
    "a value": ("server:\n  hostname: a.test # here\n", "server:\n  hostname: \"b.test\" # here\n"),
    "a quoted value": ("server: # s\n  hostname: 'a.test'\n\n# end\n", 'server: # s\n  hostname: "b.test"\n\n# end\n'),
    "no value": ("server:\n  hostname:\n  workers: 2\n", 'server:\n  hostname: "b.test"\n  workers: 2\n'),
    "no key": ("server:\n    # mine\n    workers: 2\n",
               'server:\n    hostname: "b.test"\n    # mine\n    workers: 2\n'),
    "an empty section": ("server: # nothing\nsmtp:\n  hops: 30\n",
                         'server: # nothing\n  hostname: "b.test"\nsmtp:\n  hops: 30\n'),
    "no section": ("smtp:\n  hops: 30", 'smtp:\n  hops: 30\n\nserver:\n  hostname: "b.test"\n'),
    "nothing": ("# only this\n", '# only this\nserver:\n  hostname: "b.test"\n'),
    "no file": ("", 'server:\n  hostname: "b.test"\n'),
    "a section on a line": ("server: {workers: 2} # x\n", 'server: {"hostname": "b.test", workers: 2} # x\n'),
    "an empty one on a line": ("server: {}\n", 'server: {"hostname": "b.test"}\n'),
    "JSON": ('{"smtp": {"hops": 30}}\n', '{"server": {"hostname": "b.test"}, "smtp": {"hops": 30}}\n'),
    "a folded value": ("server:\n  hostname: >-\n    a.test\n  workers: 2\n",
                       'server:\n  hostname: "b.test"\n  workers: 2\n'),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_setting(case):
    before, after = CASES[case]
    assert set_values(before, {"server.hostname": "b.test"}) == after
    assert config.parse(after)["server.hostname"] == "b.test"
    assert set_values(after, {"server.hostname": "b.test"}) == after


def test_lists_and_several():
    text = 'smtp:\n  listen:\n    - "0.0.0.0:25"\n    - "[::]:25"\n  hops: 30\n'
    changed = set_values(text, {"smtp.listen": ["127.0.0.1:25"], "smtp.hops": 40, "submission.save_sent": True})
    assert changed == 'smtp:\n  listen: ["127.0.0.1:25"]\n  hops: 40\n\nsubmission:\n  save_sent: true\n'
    text = 'smtp:\n  listen:\n  - "0.0.0.0:25"\n  # hops\n  hops: 30\n'
    assert set_values(text, {"smtp.listen": []}) == "smtp:\n  listen: []\n  # hops\n  hops: 30\n"


def test_the_sample_keeps_every_line_but_the_changed_ones():
    before = config.sample()
    after = set_values(before, {"tls.certificate": "/c.pem", "tls.key": "/k.pem", "server.hostname": "mx.test"})
    assert sum(old != new for old, new in zip(before.splitlines(), after.splitlines(), strict=True)) == 3


def test_a_wrong_value_and_a_wrong_text_are_refused():
    with pytest.raises(config.ConfigError, match="hops"):
        set_values("smtp:\n  hops: 30\n", {"smtp.hops": "many"})
    with pytest.raises(config.ConfigError, match="sections"):
        set_values("- a list\n", {"smtp.hops": 30})

"""Keys, signatures and tags against vectors of Project Wycheproof (C2SP/wycheproof, testvectors_v1, Apache-2.0): cases
that have broken implementations, by their numbers there. The known answers of the RFCs are in test_messages.py."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedcore.privacy.secagg.keys import ChunkTags, agreed, verified

#: public, private, shared: x25519_test.json 1 (normal), 2 and 4 (on the twist), 7, 13, 19, 22, 24 to 26 (special forms)
X25519 = """
504a36999f489cd2fdbc08baff3d88fa00569ba986cba22548ffde80f9806829 c8a9d5a91091ad851c668b0736c1c9a02936c0d3ad62670858088047ba057475 436a2c040cf45fea9b29a0cb81b1f41458f863d0d61b453d0a982720d6d61320
63aa40c6e38346c5caf23a6df0a5e6c80889a08647e551b3563449befcfc9733 d85d8c061a50804ac488ad774ac716c3f5ba714b2712e048491379a500211958 279df67a7c4611db4708a0e8282b195e5ac0ed6f4b2f292c6fbd0acac30d1332
0b8211a2b6049097f6871c6c052d3c5fc1ba17da9e32ae458403b05bb283092a f876e34bcbe1f47fbc0fddfd7c1e1aa53d57bfe0f66d243067b424bb6210be51 119d37ed4b109cbd6418b1f28dea83c836c844715cdf98a3a8c362191debd514
0200000000000000000000000000000000000000000000000000000000000000 d03edde9f3e7b799045f9ac3793d4a9277dadeadc41bec0290f81f744f73775f b87a1722cc6c1e2feecb54e97abd5a22acc27616f78f6e315fd2b73d9f221e57
ffffffff00000000000000000000000000000000000000000000000000000000 d053e7bf1902619cd61c9c739e09d54c4147f46d190720966f7de1d9cffbbd4e 6cbf1dc9af97bc148513a18be4a257de1a3b065584df94e8b43c1ab89720b110
ffffff030000f8ffff1f0000c0ffffff000000feffff070000f0ffff3f000000 105d621e1ef339c3d99245cfb77cd3a5bd0c4427a0e4d8752c3b51f045889b4f 61eace52da5f5ecefafa4f199b077ff64f2e3d2a6ece6f8ec0497826b212ef5f
ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff1f 68e134092e94e622c8a0cd18aff55be23dabd994ebdee982d90601f6f0f4b369 74bfc15e5597e9f5193f941e10a5c008fc89f051392723886a4a8fe5093a7354
000000fcffff070000e0ffff3f000000ffffff010000f8ffff0f0000c0ffff7f 18bffb16f92680a9e267473e43c464476d5372ddd1f664f3d0678efe7c98bc79 5894e0963583ae14a0b80420894167f4b759c8d2eb9b69cb675543f66510f646
ffffffffffffff00000000000000ffffffffffffff00000000000000ffffff7f 300305eb002bf86c71fe9c0b311993727b9dc618d0ce7251d0dfd8552d17905d f8624d6e35e6c548ac47832f2e5d151a8e53b9290363b28d2ab8d84ab7cb6a72
00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffff7f 80da9f02842247d4ade5ddbac51dbce55ea7dca2844e7f97ab8987ce7fd8bc71 bfe183ba3d4157a7b53ef178613db619e27800f85359c0b39a9fd6e32152c208
"""  # noqa: E501

#: ed25519_test.json: the key of its first groups; 1 to 3 are valid; 10 to 29 have r and s of VALUES
PUBLIC = bytes.fromhex("7d4d0e7f6153a69b6242b522abbee685fda4420f8834b108c3bdae369ef549fa")
SIGNED = """
- d4fbdb52bfa726b44d1786a8c0d171c3e62ca83c9e5bbe63de0bb2483f8fd6cc1429ab72cafc41ab56af02ff8fcc43b99bfe4c7ae940f60f38ebaa9d311c4007
78 d80737358ede548acb173ef7e0399f83392fe8125b2ce877de7975d8b726ef5b1e76632280ee38afad12125ea44b961bf92f1178c9fa819d020869975bcbe109
54657374 7c38e026f29e14aabd059a0f2db8b0cd783040609a8be684db12f82a27774ab07a9155711ecfaf7f99f277bad0c6ae7e39d4eef676573336a5c51eb6f946b30d
"""  # noqa: E501
VALUES = (
    "00" * 32,
    "01" + "00" * 31,
    "ecd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010",
    "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010",
    "ed" + "ff" * 30 + "7f",
)

#: hkdf_sha256_test.json 2, 4, 9, 12, 14: input, salt, info, output
HKDFS = """
0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b - - 8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8
24aeff2645e3e0f5494a9a102778c43a - - d4cca5e416c3d9eb58bd562e922691daff76aa4d
55fb6dcc7802354e55a45a6e41858c05 - dcd590e418b259c64fb9e139b3a1280d5de8400b 6ca91e1a6c0eb286d6fea277e9936f2486104c4c5d473a92872009f04aa545a61d03d83e14aa0965ba355551b93073ef91382c88afad091c62f6f65188f789e3
529e91a61895f1c4ceb5b6994f48783b 12e4ae515328983bab2d88da3cb32a95 - 76ced999f5f885f9df7d78a9cb0cefd09904bc90dfedd018441f30800a848140f6a4fa057170df6cf33e93aaaa10ccdb09bd114e6f4058ca45b3cb1e453804ad
0cbd136d66d15a4ffefde1303b430821 2614d80275b08a1cf90bae0eb607d4d5 ee991de21aeb6baa6a5f683dbb755e6f80db1c1d 4d534f8c2193b375589e5223fe65b926359b285df968bf5c55d76f4a7cf9b0065687a40d58c820d7edc3
"""  # noqa: E501

#: aes_gmac_test.json 290 to 323: the true tag, and bits of it that are flipped there
GMAC_TAGS = {8: "a7c2f201d0dfea1987a9a9c68fe68516", 16: "5194f694237f3f36d66e04b352a96311"}
FLIPPED = (0, 1, 7, 8, 31, 32, 33, 63, 64, 71, 77, 80, 96, 97, 103, 120, 121)


def _rows(text: str) -> list[list[bytes]]:
    return [[b"" if part == "-" else bytes.fromhex(part) for part in row.split()] for row in text.split("\n") if row]


@pytest.mark.parametrize(("public", "private", "shared"), _rows(X25519))
def test_x25519(public, private, shared):
    assert agreed(X25519PrivateKey.from_private_bytes(private), public, "b") == shared


def test_ed25519():
    for message, signature in _rows(SIGNED):
        assert verified(PUBLIC, signature, message)
        assert not verified(PUBLIC, signature, message + b"\x00")
    for r in VALUES:
        for s in VALUES:
            assert not verified(PUBLIC, bytes.fromhex(r + s), b"\x3f")


@pytest.mark.parametrize(("secret", "salt", "info", "output"), _rows(HKDFS))
def test_hkdf(secret, salt, info, output):
    assert HKDF(SHA256(), len(output), salt, info).derive(secret) == output


def test_tags_of_chunks_are_gmac():
    tags = ChunkTags.__new__(ChunkTags)
    tags._cipher = AESGCM(bytes(range(32)))
    number = int.from_bytes(bytes(range(12)), "little")
    for size, text in GMAC_TAGS.items():
        message, tag = bytes(range(size)), bytes.fromhex(text)
        assert tags.tag(number, message) == tag
        assert tags.fits(number, message, tag)
        for bit in FLIPPED:
            bad = bytearray(tag)
            bad[bit // 8] ^= 1 << bit % 8
            assert not tags.fits(number, message, bytes(bad))
        assert not tags.fits(number + 1, message, tag)


def test_seals_that_were_changed_do_not_open():
    """chacha20_poly1305_test.json 2, and the case whose tag the file flips bit by bit."""
    empty = ChaCha20Poly1305(bytes.fromhex("80ba3192c803ce965ea371d5ff073cf0f43b6a2ab576b208426e11409c09b9b0"))
    nonce = bytes.fromhex("4da5bf8dfd5852c1ea12379d")
    assert empty.encrypt(nonce, b"", b"").hex() == "76acb342cf3166a5b63c0c0ea1383c8d"
    box = ChaCha20Poly1305(bytes.fromhex("00112233445566778899aabbccddeeff" * 2))
    tag, nonce = bytes.fromhex("a3e3fdf9fba6861b5ad2607f40b7f447"), bytes(range(12))
    assert box.encrypt(nonce, b"", b"aad") == tag
    for bit in FLIPPED:
        bad = bytearray(tag)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidTag):
            box.decrypt(nonce, bytes(bad), b"aad")

from rlsys.common.lru import ByteCache


def test_what_was_not_used_for_longest_goes_first():
    cache = ByteCache(100)
    for key in "abc":
        cache.put(key, key.upper(), num_bytes=30)
    assert cache.get("a") == "A"
    cache.put("d", "D", num_bytes=30)
    assert [key in cache for key in "abcd"] == [True, False, True, True]
    assert cache.get("b") is None and cache.num_bytes == 90


def test_a_value_put_again_counts_once():
    cache = ByteCache(100)
    cache.put("a", 1, num_bytes=60)
    cache.put("a", 2, num_bytes=80)
    assert cache.get("a") == 2 and cache.num_bytes == 80


def test_a_cleared_cache_keeps_nothing():
    cache = ByteCache(100)
    cache.put("a", 1, num_bytes=60)
    cache.clear()
    assert cache.get("a") is None and cache.num_bytes == 0


def test_the_newest_stays_however_large():
    cache = ByteCache(100)
    cache.put("small", 1, num_bytes=10)
    cache.put("large", 2, num_bytes=1000)
    assert cache.get("large") == 2 and cache.get("small") is None

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("test.toml"), text)
}

#[test]
fn an_empty_file_is_the_built_in_configuration() {
    assert_eq!(parse("").unwrap(), Config::built_in().unwrap());
}

#[test]
fn what_is_shown_can_be_read_again() {
    let text = r#"
        socket = "/tmp/x.sock"
        socket_mode = "0660"
        user = "viaduct"
        [limits]
        ring_log2_max = 20
        [limits.per_user]
        memory_bytes = "8 GiB"
        [[domain]]
        name = "one"
        tenant = "t"
        addresses = ["10.1.0.0/24", "fd00::1"]
        netns = "/run/netns/one"
        rate_limit = 1000
        [[domain]]
        name = "two"
        tenant = "u"
        addresses = ["10.1.0.0/16"]
        [[link]]
        name = "lan"
        driver = "udp"
        bind = "10.9.0.1"
        peers = [{ prefix = "10.9.0.2", backend = "10.9.0.2:7000" }]
        convention = true
        max_frame = 1472
        [link.faults]
        drop = 0.01
        delay_us = 5
        [[link]]
        name = "wire"
        driver = "ethernet"
        interface = "eth0"
        peers = [{ prefix = "fd00::/64", backend = "02:00:00:00:00:0a" }]
        [[vm]]
        name = "a"
        socket = "/run/a.sock"
        tenant = "t"
        addresses = ["10.7.0.1"]
        memory = "256 MiB"
    "#;
    let config = parse(text).unwrap();
    assert_eq!(config.limits.ring_log2_default, 20);
    assert_eq!(config.limits.per_user.memory_bytes, 8 << 30);
    assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn an_error_is_one_line_with_key_value_and_remedy() {
    for (text, parts) in [
        ("sockett = 1", &["test.toml:1", "sockett", "socket"][..]),
        ("\n\nuser = 3", &["test.toml:3", "string"]),
        ("socket = \"x.sock\"", &["socket = x.sock", "absolute"]),
        ("socket_mode = \"0999\"", &["socket_mode = 0999", "0660"]),
        (
            "[limits]\nclients = 0",
            &["limits.clients = 0", "at least 1"],
        ),
        (
            "[limits]\nring_log2_max = 99",
            &["limits.ring_log2_max = 99", "16 to 30"],
        ),
        (
            "[limits]\nring_log2_max = 18\nring_log2_default = 20",
            &["= 20", "(18)"],
        ),
        (
            "[limits.per_user]\nmemory_bytes = \"4 elephants\"",
            &["test.toml:2", "elephants", "GiB"],
        ),
        ("[[domain]]\nname = \"\"", &["domain[0].name", "empty"]),
        (
            "[[domain]]\nname = \"a\"\naddresses = [\"10.0.0.0/99\"]",
            &["domain[0].addresses = 10.0.0.0/99", "BITS"],
        ),
        (
            "[[domain]]\nname = \"a\"\naddresses = [\"127.0.0.1\"]",
            &["loopback"],
        ),
        (
            "[[domain]]\nname = \"a\"\nweight = 0",
            &["domain[0].weight = 0", "1 to 1000"],
        ),
        (
            "[[domain]]\nname = \"a\"\n[[domain]]\nname = \"a\"",
            &["domain[1].name = a", "domain[0]"],
        ),
        (
            "[[domain]]\nname = \"a\"\n[[domain]]\nname = \"b\"",
            &["domain[1].netns", "one domain per namespace"],
        ),
        (
            "[[domain]]\nname = \"a\"\naddresses = [\"10.0.0.0/8\"]\n[[domain]]\nname = \"b\"\nnetns = \"/n\"\naddresses = [\"10.1.0.0/16\"]",
            &["domain[1].addresses = 10.1.0.0/16", "overlaps"],
        ),
        (
            "[[link]]\nname = \"a\"\ndriver = \"pigeon\"",
            &["link[0].driver = pigeon", "ethernet"],
        ),
        (
            "[[link]]\nname = \"a\"\ndriver = \"udp\"",
            &["link[0].bind = (none)", "ADDRESS:PORT"],
        ),
        (
            "[[link]]\nname = \"a\"\ndriver = \"ethernet\"\ninterface = \"e\"\nconvention = true",
            &["link[0].convention = true", "udp"],
        ),
        (
            "[[link]]\nname = \"a\"\ndriver = \"ethernet\"\ninterface = \"e\"\npeers = [{ prefix = \"10.0.0.1\", backend = \"10.0.0.1\" }]",
            &["link[0].peers.backend = 10.0.0.1", "MAC"],
        ),
        (
            "[[link]]\nname = \"a\"\ndriver = \"udp\"\nbind = \"10.0.0.1\"\nmax_frame = 9",
            &["link[0].max_frame = 9", "1200 to 65507"],
        ),
        (
            "[[link]]\nname = \"a\"\ndriver = \"udp\"\nbind = \"10.0.0.1\"\n[link.faults]\ndrop = 2.0",
            &["link[0].faults.drop = 2", "0 to 1"],
        ),
        (
            "[[vm]]\nname = \"a\"\nsocket = \"a.sock\"",
            &["vm[0].socket = a.sock", "absolute"],
        ),
        (
            "[[vm]]\nname = \"a\"\nsocket = \"/a\"",
            &["vm[0].addresses = []", "at least one"],
        ),
        (
            "[[vm]]\nname = \"a\"\nsocket = \"/a\"\naddresses = [\"10.0.0.1\"]\nmemory = \"100 MiB\"",
            &["vm[0].memory = 104857600", "power of two"],
        ),
        (
            "[[vm]]\nname = \"a\"\nsocket = \"/a\"\naddresses = [\"10.0.0.1\"]\nvectors = 1",
            &["vm[0].vectors = 1", "4 to 256"],
        ),
        (
            "[[vm]]\nname = \"a\"\nsocket = \"/a\"\ntenant = \"t\"\naddresses = [\"10.0.0.0/8\"]\n[[vm]]\nname = \"b\"\nsocket = \"/b\"\ntenant = \"t\"\naddresses = [\"10.1.0.1\"]",
            &["vm[1].addresses = 10.1.0.1", "overlaps"],
        ),
        ("= 1", &["test.toml:1"]),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
}

use super::*;

fn parse(text: &str) -> Result<Config, toml::de::Error> {
    toml::from_str(text)
}

fn config(text: &str) -> Config {
    parse(text).expect("a valid configuration")
}

fn cause(config: &Config, host: &str, port: u16, address: &str) -> Option<Cause> {
    let address = address.parse().expect("an address");
    let denied = config.permit(HostPort { host, port }, address).err()?;
    assert_eq!((&*denied.host, denied.address), (host, Some(address)));
    Some(denied.cause)
}

/// The class for which an address is denied where only public ones are dialled.
fn class(address: &str) -> Class {
    match cause(&config("only = 'public'"), address, 80, address) {
        Some(Cause::Class(class)) => class,
        Some(cause) => panic!("{address}: {cause}"),
        None => Class::Public,
    }
}

#[test]
fn each_address_is_in_a_class() {
    for (expected, addresses) in [
        (
            Class::Loopback,
            "127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 ::1 ::",
        ),
        (
            Class::Private,
            "10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 100.64.0.1 100.127.255.255 fc00::1 fdff::1 fec0::1 64:ff9b:1::1",
        ),
        (
            Class::LinkLocal,
            "169.254.0.1 169.254.169.253 255.255.255.255 224.0.0.1 239.255.255.255 fe80::1 febf::1 ff02::1",
        ),
        (
            Class::Metadata,
            "169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd20:ce::254",
        ),
        (
            Class::Reserved,
            "192.0.0.1 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 240.0.0.1 255.255.255.254 192.88.99.1 2001:db8::1 3fff::1 100::1 5f00::1 4000::1",
        ),
        (
            Class::Public,
            "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 172.15.255.255 172.32.0.0 \
             192.167.255.255 192.169.0.0 169.253.255.255 169.255.0.0 223.255.255.255 2600::1 2a00:1450::1 2001:4860::8888",
        ),
    ] {
        for address in addresses.split_whitespace() {
            assert_eq!(class(address), expected, "{address}");
        }
    }
}

#[test]
fn an_address_that_carries_another_one_is_both() {
    let deny = |class: &str| config(&format!("deny = ['{class}']"));
    for (class, addresses) in [
        (
            "loopback",
            "::ffff:127.0.0.1 ::127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::7f00:1 64:ff9b:1:7f00:0:1:: \
             64:ff9b:1:7f:0:1:: 64:ff9b:1:0:7f:0:100:0 2002:7f00:1:: 2002:7f00:1::5 2001:0:7f00:1:: 2001:0:808:808:0:0:80ff:fffe \
             2600::5efe:7f00:1 2600::200:5efe:7f00:1 ::ffff:0.0.0.0",
        ),
        (
            "metadata",
            "::ffff:169.254.169.254 ::169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe:: 64:ff9b:1::a9fe:a9fe ::ffff:100.100.100.200",
        ),
        ("private", "::ffff:10.0.0.1 64:ff9b::a00:1 2002:c0a8:1::"),
        ("link-local", "::ffff:169.254.0.1 64:ff9b::ffff:ffff"),
    ] {
        for address in addresses.split_whitespace() {
            let found = cause(&deny(class), address, 80, address);
            assert!(matches!(found, Some(Cause::Class(_))), "{class} {address}");
        }
    }
    // What a network behind NAT64 dials in place of 8.8.8.8.
    assert_eq!(class("64:ff9b::808:808"), Class::Public);
    assert_eq!(class("::ffff:8.8.8.8"), Class::Public);
}

#[test]
fn by_default_link_local_and_metadata_addresses_are_denied_and_nothing_else() {
    let config = Config::default();

    for address in ["169.254.169.254", "169.254.0.1", "fe80::1", "fd00:ec2::254"] {
        assert!(cause(&config, "h", 80, address).is_some(), "{address}");
    }
    for address in [
        "127.0.0.1",
        "::1",
        "10.0.0.1",
        "fd00::1",
        "192.0.2.1",
        "1.1.1.1",
    ] {
        assert_eq!(cause(&config, "h", 80, address), None, "{address}");
    }
    assert!(config.error_bodies);
}

#[test]
fn what_is_allowed_goes_before_what_is_denied() {
    let config = config(
        "only = 'public'\nallow = ['10.1.0.0/16', '10.2.0.7:8443', '[fd00:7::/64]:443', '*.internal.example', 'Shop.Example:80', '169.254.169.254']",
    );
    let denied = |host, port, address| cause(&config, host, port, address).is_some();

    assert!(!denied("h", 80, "10.1.2.3"));
    assert!(!denied("h", 80, "::ffff:10.1.2.3"));
    assert!(!denied("h", 80, "64:ff9b::a01:203"), "carried by NAT64");
    assert!(denied("h", 80, "10.2.0.7") && !denied("h", 8443, "10.2.0.7"));
    assert!(denied("h", 80, "fd00:7::1") && !denied("h", 443, "fd00:7::1"));
    for host in ["a.internal.example", "A.B.Internal.Example."] {
        assert!(!denied(host, 80, "10.9.9.9"), "{host}");
    }
    for host in [
        "internal.example",
        ".internal.example",
        "evilinternal.example",
        "a.internal.example.evil",
        "internal.example.evil",
    ] {
        assert!(denied(host, 80, "10.9.9.9"), "{host}");
    }
    assert!(!denied("shop.example", 80, "10.9.9.9") && denied("shop.example", 81, "10.9.9.9"));
    // By its address it is allowed, by a name it would not be.
    assert!(!denied("a.internal.example", 80, "169.254.169.254"));
    assert!(denied("a.internal.example", 80, "fd00:ec2::254"));
    // An allowed address opens what it carries, since it was named itself.
    let outer = tests::config("deny = ['loopback']\nallow = ['2002::/16']");
    assert_eq!(cause(&outer, "h", 80, "2002:7f00:1::"), None);
}

#[test]
fn ports_and_lists_of_what_is_allowed_keep_the_rest_out() {
    let ports = config("ports = [443, '8000-8999']");
    for (port, expected) in [
        (443, None),
        (8000, None),
        (8999, None),
        (80, Some(Cause::Port(80))),
        (9000, Some(Cause::Port(9000))),
    ] {
        assert_eq!(cause(&ports, "h", port, "1.1.1.1"), expected);
    }

    let listed = config("only = 'allowed'\nallow = ['shop.example', '10.0.0.0/8']");
    assert_eq!(cause(&listed, "shop.example", 80, "1.1.1.1"), None);
    assert_eq!(cause(&listed, "h", 80, "10.1.1.1"), None);
    assert_eq!(cause(&listed, "h", 80, "1.1.1.1"), Some(Cause::NotAllowed));
    assert!(config("only = 'allowed'").check().is_err());
    assert!(
        config("only = 'public'\ndeny = ['public']")
            .check()
            .is_err()
    );
    assert_eq!(listed.check(), Ok(()));
    let inside = config("deny = ['public']");
    assert_eq!(
        cause(&inside, "h", 80, "1.1.1.1"),
        Some(Cause::Class(Class::Public))
    );
}

#[test]
fn what_is_known_before_a_name_is_resolved_is_said() {
    let config =
        config("only = 'allowed'\nallow = ['a.example', '*.b.example:8443']\nports = [443, 8443]");
    let cause = |host, port| {
        let denied = config.foresee(HostPort { host, port });
        denied.map(|denied| denied.cause)
    };

    assert_eq!(cause("a.example", 443), None);
    assert_eq!(cause("a.example", 80), Some(Cause::Port(80)));
    assert_eq!(cause("x.b.example", 443), Some(Cause::NotAllowed));
    assert_eq!(cause("x.b.example", 8443), None);
    assert_eq!(cause("10.0.0.1", 443), Some(Cause::NotAllowed));
    assert_eq!(cause("::1", 443), Some(Cause::NotAllowed));
    assert_eq!(
        Config::default().foresee(HostPort {
            host: "h",
            port: 80
        }),
        None
    );
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for text in [
        "allow = ['*']",
        "allow = ['*.']",
        "allow = ['a.*.example']",
        "allow = ['']",
        "allow = ['10.1.2.3/16']",
        "allow = ['10.1.0.0/33']",
        "allow = ['fd00::/200']",
        "allow = ['fd00::1/64']",
        "allow = ['[fd00::1]x']",
        "allow = ['10.1.0.0/16:0']",
        "allow = ['shop.example:http']",
        "allow = ['https://shop.example']",
        "allow = ['shop.example/path']",
        "allow = ['0x7f.1']",
        "ports = [0]",
        "ports = ['9-1']",
        "ports = [70000]",
        "deny = ['privat']",
        "only = 'private'",
        "denied = []",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_in_force_is_said_in_a_line() {
    for (text, expected) in [
        ("", "link-local, metadata addresses are not dialled"),
        ("deny = []", "every address is dialled"),
        (
            "only = 'public'\nallow = ['10.1.0.0/16', '[fd00::/8]:443', '*.a.example']\nports = [443, '8000-8999']\nerror_bodies = false",
            "only public addresses are dialled, but 10.1.0.0/16, [fd00::/8]:443, *.a.example, at ports \
             443, 8000-8999; answers are no part of errors",
        ),
        (
            "only = 'allowed'\nallow = ['shop.example:443']",
            "nothing is dialled, but shop.example:443",
        ),
    ] {
        assert_eq!(config(text).to_string(), expected);
    }
}

#[test]
fn a_denial_does_not_say_what_a_name_resolves_to() {
    let denied = Config::default()
        .permit(
            HostPort {
                host: "db.internal",
                port: 80,
            },
            "169.254.7.7".parse().expect("an address"),
        )
        .expect_err("denied");

    assert_eq!(
        denied.to_string(),
        "db.internal is a link-local address, which [egress] does not allow"
    );
}

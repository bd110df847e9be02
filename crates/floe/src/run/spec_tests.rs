//! Table tests of the runtime's configuration, and one whole document.

use serde_json::{Value, json};

use super::*;
use crate::exit::{Code, code_of};

fn image(config: Value) -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [] }
    }))
    .unwrap()
}

fn host() -> Host {
    let env = [("SHELL_VAR", "from host"), ("EMPTY", "")];
    Host {
        hostname: "machine".into(),
        env: env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        cgroup2: true,
        inside: false,
    }
}

fn place() -> Place {
    Place {
        id: "floe-0123456789ab".into(),
        rootfs: "/store/run/x/rootfs".into(),
        etc: "/store/run/x/etc".into(),
    }
}

fn options() -> Options {
    Options::new("/store")
}

/// The document with its sets in a stable order.
fn document(config: Value, options: &Options, user: &Identity) -> Value {
    let spec = build(&image(config), options, &options.volumes, user, &host(), &place()).unwrap();
    let mut document = serde_json::to_value(spec).unwrap();
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        if let Some(Value::Array(names)) = document.pointer_mut(&format!("/process/capabilities/{set}")) {
            names.sort_by_key(ToString::to_string);
        }
    }
    document
}

fn process_of(config: Value, options: &Options) -> Value {
    document(config, options, &Identity::default())["process"].clone()
}

#[test]
fn entrypoint_and_arguments_combine_as_in_docker() {
    let list = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    // Entrypoint and Cmd of the image, entrypoint and arguments given, result.
    type Case<'a> = (&'a [&'a str], &'a [&'a str], Option<&'a [&'a str]>, &'a [&'a str], &'a [&'a str]);
    let table: [Case<'_>; 8] = [
        (&[], &["c", "d"], None, &[], &["c", "d"]),
        (&["e"], &["c"], None, &[], &["e", "c"]),
        (&["e"], &[], None, &[], &["e"]),
        (&["e"], &["c"], None, &["a", "b"], &["e", "a", "b"]),
        (&[], &["c"], None, &["a"], &["a"]),
        (&["e"], &["c"], Some(&["x"]), &[], &["x"]),
        (&["e"], &["c"], Some(&["x", "y"]), &["a"], &["x", "y", "a"]),
        (&["e"], &["c"], Some(&[]), &["a"], &["a"]),
    ];
    for (entrypoint, cmd, own, args, expected) in table {
        let mut options = options();
        options.entrypoint = own.map(list);
        options.args = list(args);
        let image = image(json!({ "Entrypoint": entrypoint, "Cmd": cmd }));
        assert_eq!(
            command(&image, &options).unwrap(),
            list(expected),
            "{entrypoint:?} {cmd:?} {own:?} {args:?}"
        );
    }
}

#[test]
fn an_image_without_a_command_is_named_as_the_reason() {
    for config in
        [json!({}), json!({ "Cmd": [] }), json!({ "Cmd": null, "Entrypoint": null }), json!({ "Cmd": [""] })]
    {
        let error = command(&image(config), &options()).unwrap_err();
        assert_eq!(code_of(&error), Code::Misused);
        assert!(format!("{error:#}").contains("neither Entrypoint nor Cmd"));
    }
}

#[test]
fn the_environment_has_defaults_and_later_settings_win() {
    let config = json!({ "Cmd": ["x"], "Env": ["PATH=/own", "A=1", "A=2", "B=x=y", "=odd", "FLAG"] });
    let mut options = options();
    options.env = ["B=new", "C=", "SHELL_VAR", "EMPTY", "NOT_SET"].map(String::from).to_vec();
    let expected = [
        "PATH=/own",
        "HOSTNAME=machine",
        "A=2",
        "B=new",
        "FLAG",
        "C=",
        "SHELL_VAR=from host",
        "EMPTY=",
        "HOME=/",
    ];
    assert_eq!(process_of(config, &options)["env"], json!(expected));
    let bare = process_of(json!({ "Cmd": ["x"] }), &Options::new("/store"));
    assert_eq!(bare["env"], json!([PATH, "HOSTNAME=machine", "HOME=/"]));
}

#[test]
fn home_is_the_users_unless_set() {
    let user = Identity { uid: 7, gid: 8, groups: vec![9, 10], home: Some("/srv".into()) };
    let home = |config| {
        let document = document(config, &options(), &user);
        let env = document["process"]["env"].as_array().unwrap().clone();
        env.into_iter().filter(|setting| setting.as_str().unwrap().starts_with("HOME=")).collect::<Vec<_>>()
    };
    assert_eq!(home(json!({ "Cmd": ["x"] })), ["HOME=/srv"]);
    assert_eq!(home(json!({ "Cmd": ["x"], "Env": ["HOME=/mine"] })), ["HOME=/mine"]);
}

#[test]
fn nonsense_settings_are_refused() {
    for bad in ["=x", "A=\0"] {
        let mut options = options();
        options.env = vec![bad.into()];
        let result =
            build(&image(json!({ "Cmd": ["x"] })), &options, &[], &Identity::default(), &host(), &place());
        assert_eq!(code_of(&result.unwrap_err()), Code::Misused, "{bad:?}");
    }
}

#[test]
fn the_working_directory_is_absolute_and_clean() {
    let table = [
        (None, None, "/"),
        (Some(""), None, "/"),
        (Some("/app"), None, "/app"),
        (Some("app/./x"), None, "/app/x"),
        (Some("/a/../../b/"), None, "/b"),
        (Some("/app"), Some("/other"), "/other"),
        (Some("/app"), Some(".."), "/"),
    ];
    for (of_image, own, expected) in table {
        let mut options = options();
        options.workdir = own.map(PathBuf::from);
        assert_eq!(working_dir(of_image, &options), Path::new(expected), "{of_image:?} {own:?}");
    }
}

#[test]
fn only_root_begins_with_capabilities() {
    let capabilities = |uid| {
        let user = Identity { uid, ..Identity::default() };
        document(json!({ "Cmd": ["x"] }), &options(), &user)["process"]["capabilities"].clone()
    };
    let (root, user) = (capabilities(0), capabilities(1));
    assert_eq!(root["effective"].as_array().unwrap().len(), 14);
    assert_eq!(root["bounding"], user["bounding"]);
    assert_eq!(user["effective"], json!([]));
    for set in ["inheritable", "ambient"] {
        assert_eq!(root[set], json!([]));
    }
}

#[test]
fn networks_differ_in_namespace_name_and_sysctl() {
    let with = |net| {
        let mut options = options();
        options.net = net;
        document(json!({ "Cmd": ["x"] }), &options, &Identity::default())
    };
    let has_network = |document: &Value| {
        document["linux"]["namespaces"].as_array().unwrap().contains(&json!({ "type": "network" }))
    };
    let (shared, own) = (with(Net::Host), with(Net::None));
    assert!(!has_network(&shared) && has_network(&own));
    assert_eq!(shared["hostname"], "machine");
    assert_eq!(own["hostname"], "floe-0123456789ab");
    assert!(shared["linux"]["sysctl"].as_object().is_none_or(serde_json::Map::is_empty));
    assert_eq!(own["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
}

#[test]
fn volumes_come_after_everything_they_may_cover() {
    let mut options = options();
    options.volumes = vec!["/a:/etc/hosts:ro".parse().unwrap(), "/b:/data".parse().unwrap()];
    let document = document(json!({ "Cmd": ["x"] }), &options, &Identity::default());
    let mounts = document["mounts"].as_array().unwrap();
    let last: Vec<&Value> = mounts.iter().rev().take(2).rev().collect();
    assert_eq!(
        *last[0],
        json!({ "destination": "/etc/hosts", "type": "bind", "source": "/a", "options": ["rbind", "rprivate", "ro", "rro"] })
    );
    assert_eq!(last[1]["options"], json!(["rbind", "rprivate", "rw"]));
}

#[test]
fn version_1_hosts_share_their_cgroup_view() {
    let document = |cgroup2| {
        let host = Host { cgroup2, ..host() };
        let spec =
            build(&image(json!({ "Cmd": ["x"] })), &options(), &[], &Identity::default(), &host, &place());
        serde_json::to_value(spec.unwrap()).unwrap()["linux"]["namespaces"].to_string().contains("cgroup")
    };
    assert!(document(true) && !document(false));
}

#[test]
fn a_whole_document_stays_what_it_is() {
    let user = Identity { uid: 33, gid: 34, groups: vec![44], home: Some("/srv".into()) };
    let config = json!({
        "User": "web", "Entrypoint": ["/bin/app"], "Cmd": ["--serve"], "WorkingDir": "/srv", "Env": ["MODE=test"],
        "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/data": {} }, "StopSignal": "SIGQUIT", "Labels": { "a": "b" }
    });
    let document = serde_json::to_string_pretty(&document(config, &options(), &user)).unwrap();
    insta::assert_snapshot!("whole_document", document);
}

#[test]
fn an_ordinary_users_container_asks_for_nothing_that_only_root_can_give() {
    let host = Host { inside: true, ..host() };
    let user = Identity { groups: vec![5], ..Identity::default() };
    let spec = build(&image(json!({ "Cmd": ["x"] })), &options(), &[], &user, &host, &place()).unwrap();
    let spec = serde_json::to_value(spec).unwrap();
    assert!(spec["linux"]["cgroupsPath"].is_null(), "{spec:#}");
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([]));
    let mounts = spec["mounts"].as_array().unwrap();
    let kind = |at: &str| mounts.iter().find(|mount| mount["destination"] == at).map(|mount| &mount["type"]);
    assert_eq!((kind("/sys"), kind("/sys/fs/cgroup")), (Some(&json!("bind")), None));
    assert!(!spec["mounts"].to_string().contains("gid=5"));
}

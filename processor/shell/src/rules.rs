//! From scenes as they are configured to rules in force: what the core must know, and connected targets.
//!
//! Invariant: a target whose configuration did not change keeps its connections.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tracing::{error, info, warn};

use retide_config::Scene;
use retide_connectors::kafka::OwnTopic;
use retide_connectors::{Outbound, Target, TargetConfig};
use retide_core::scene::{self, Missing};
use retide_core::topic::is_own;
use retide_core::{Holds, Kind, with_causes};

use crate::scenes::Follower;
use crate::worker::drive::Rules;

/// Makes rules of scenes, again and again.
#[derive(Default)]
pub struct Connected {
    /// What the names of retide's topics begin with.
    prefix: String,
    /// What connections go by.
    outbound: Outbound,
    /// The targets of the scenes.
    targets: Targets,
    /// The scenes that are held since a secret is missing, and what is wrong with it.
    missing: BTreeMap<String, String>,
}

/// Connected targets by the name of their scene and the kind of tasks that go there, each with the configuration it was made of.
type Targets = HashMap<(Arc<str>, Kind), (TargetConfig, Arc<dyn Target>)>;

// === impl Connected ===

impl Connected {
    /// Rules of which none were made yet, where retide's topics have this prefix and connections go by `outbound`.
    pub fn new(prefix: &str, outbound: Outbound) -> Self {
        Self {
            prefix: prefix.to_owned(),
            outbound,
            ..Self::default()
        }
    }

    /// The scenes that are held since a secret is missing, and what is wrong with it.
    pub fn missing(&self) -> &BTreeMap<String, String> {
        &self.missing
    }

    /// Reads all secrets again; true if other scenes are held for one that is missing than before.
    pub fn look(&self, file: &BTreeMap<String, Scene>, topic: &Follower) -> bool {
        for place in self.outbound.secrets.look() {
            info!(place, "secret read");
        }
        let topic = topic.scenes();
        let shadowed = file.iter().filter(|(name, _)| !topic.contains_key(*name));
        let missing: BTreeMap<String, String> = topic
            .iter()
            .chain(shadowed)
            .filter_map(|(name, scene)| Some((name.clone(), self.missing_of(scene)?)))
            .collect();
        missing != self.missing
    }

    /// What is wrong with a secret of a scene, if one is missing.
    fn missing_of(&self, scene: &Scene) -> Option<String> {
        scene.references().find_map(|(key, reference)| {
            let problem = self.outbound.secrets.missing(reference)?;
            Some(format!("{key}: {problem}"))
        })
    }

    /// The rules of a process: of the scenes of a file, and of those of the topic, which go first.
    pub fn in_force(&mut self, file: &BTreeMap<String, Scene>, topic: &Follower) -> Rules {
        let mut rules = self.rules(&merged(file, topic.scenes()));
        let holds: Holds = topic.holds().values().map(Arc::clone).collect();
        rules.holds = holds.with_forced(topic.all_forced());
        for (name, _) in topic.unreadable().iter() {
            rules.scenes.miss(name.as_str(), Missing::Unreadable);
        }
        if topic.unreadable().others().is_some() {
            rules.scenes.miss_some();
        }
        for name in topic.gone() {
            rules.scenes.miss(name.as_str(), Missing::Gone);
        }
        rules
    }

    /// The rules of `scenes`. A scene that cannot be put in force, which its checks should have found, is left out and logged.
    pub fn rules(&mut self, scenes: &BTreeMap<String, Scene>) -> Rules {
        let mut rules = Rules::default();
        let next = Self::new(&self.prefix, self.outbound.clone());
        let before = std::mem::replace(self, next);
        for (name, scene) in scenes {
            if let Some(problem) = self.missing_of(scene) {
                self.missing.insert(name.clone(), problem);
                // Its tasks wait: without the secret they would be refused for good.
                rules.scenes.miss(name.as_str(), Missing::Unreadable);
                continue;
            }
            let mut core = match scene.rules(name) {
                Ok(core) => core,
                Err(error) => {
                    error!(scene = name, %error, "scene left out");
                    continue;
                }
            };
            let name = Arc::clone(&core.name);
            for kind in Kind::ALL {
                let Some(target) = target_of(scene, kind) else {
                    continue;
                };
                let route = (Arc::clone(&name), kind);
                if let Some(refusal) = self.refusal(target) {
                    core.set_target(kind, scene::Target::Call);
                    rules.routes.insert(route, refusal);
                } else {
                    keep(
                        &mut self.targets,
                        &before.targets,
                        (route, target),
                        &self.outbound,
                    );
                }
            }
            rules.scenes.insert(core);
        }
        let connected = self.targets.iter();
        let connected = connected.map(|(route, (_, target))| (route.clone(), Arc::clone(target)));
        rules.routes.extend(connected);
        rules
    }

    /// What is called in place of a target that is a topic of retide's own, if it is one.
    fn refusal(&self, target: &TargetConfig) -> Option<Arc<dyn Target>> {
        let topic = target.topic().filter(|topic| is_own(&self.prefix, topic))?;
        let topic = topic.to_owned();
        Some(Arc::new(OwnTopic { topic }))
    }
}

/// The scenes in force where some stand in a file and some on the topic, which go first.
pub fn merged(
    file: &BTreeMap<String, Scene>,
    topic: &BTreeMap<String, Scene>,
) -> BTreeMap<String, Scene> {
    let mut scenes = file.clone();
    for (name, scene) in topic {
        let shadowed = scenes.insert(name.clone(), scene.clone());
        if shadowed.is_some_and(|shadowed| shadowed != *scene) {
            warn!(
                scene = name,
                "the scene on the scenes topic differs from the one configured, and goes before it"
            );
        }
    }
    scenes
}

/// Connects the target of a scene and kind, or takes over its connection.
fn keep(
    targets: &mut Targets,
    before: &Targets,
    (route, config): ((Arc<str>, Kind), &TargetConfig),
    outbound: &Outbound,
) {
    let name = &*route.0;
    let kept = before
        .get(&route)
        .filter(|(before, _)| before == config)
        .map(|(_, target)| Ok(Some(Arc::clone(target))));
    if kept.is_none()
        && let Some(denied) = config.server().and_then(|server| server.foresee(outbound))
    {
        warn!(scene = name, %denied, "target is not dialled: its tasks are dead letters");
    }
    match kept.unwrap_or_else(|| config.connect(outbound)) {
        Ok(Some(target)) => {
            targets.insert(route, (config.clone(), target));
        }
        Ok(None) => {}
        Err(error) => {
            let error = with_causes(&error);
            error!(scene = name, %error, "target could not be set up");
        }
    }
}

/// What the tasks of this kind of a scene call, if the scene wants them tried.
fn target_of(scene: &Scene, kind: Kind) -> Option<&TargetConfig> {
    match kind {
        Kind::Work => Some(&scene.target),
        Kind::Callback => scene.callback.as_ref().map(|callback| &callback.target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenes(text: &str) -> BTreeMap<String, Scene> {
        retide_config::scenes("scenes.toml", text.to_owned(), "retry").unwrap()
    }

    #[test]
    fn the_names_that_targets_keep_free_are_those_of_the_headers() {
        assert_eq!(retide_connectors::OWN, retide_avro::headers::NAMES);
    }

    #[test]
    fn a_target_is_connected_anew_only_if_its_configuration_changed() {
        let mut connected = Connected::default();
        let first = scenes(
            "scenes.a.target = { http = { url = 'http://a/' } }\nscenes.b.target = { http = { url = 'http://b/' } }",
        );
        let second = scenes(
            "scenes.a = { target = { http = { url = 'http://a/' } }, max_attempts = 3 }\nscenes.b.target = { http = { url = 'http://c/' } }",
        );

        let before = connected.rules(&first);
        let after = connected.rules(&second);

        let [a, b] = ["a", "b"].map(|name| (Arc::from(name), Kind::Work));
        assert!(Arc::ptr_eq(&before.routes[&a], &after.routes[&a]));
        assert!(!Arc::ptr_eq(&before.routes[&b], &after.routes[&b]));
        assert_eq!(after.scenes.get("a").unwrap().policy.max_attempts.get(), 3);
    }

    #[test]
    fn scenes_of_the_topic_go_before_those_of_the_file() {
        let file = scenes(
            "scenes.a.target = { kafka = { topic = 'x' } }\nscenes.b.target = { kafka = { topic = 'x' } }",
        );
        let topic = scenes("scenes.a.target = { kafka = { topic = 'y' } }");

        let merged = merged(&file, &topic);

        assert_eq!(merged["a"], topic["a"]);
        assert_eq!(merged["b"], file["b"]);
    }
}

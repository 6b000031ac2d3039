//! A replay whose tasks go to a URL: a scene of the campaign has it as its target.
//!
//! Not how they are sent, which is what that scene says. Invariant: the scene is written down before the campaign is asked for, and only when
//! somebody has said yes.

use std::collections::BTreeMap;

use retide_config::Config;

use crate::cli::output::{Exit, Failed, say};
use crate::cli::scenes::Proposed;

/// The scene of a campaign.
pub(super) struct Retarget<'a> {
    /// The URL.
    url: &'a str,
    /// The scene.
    scene: Proposed<'a>,
}

/// What the names of such scenes begin with.
const PREFIX: &str = "campaign-";

/// The name of the scene of a campaign.
pub(super) fn scene_of(campaign: &str) -> String {
    format!("{PREFIX}{campaign}")
}

// === impl Retarget ===

impl<'a> Retarget<'a> {
    /// The scene by which the tasks of a campaign go to a URL. Fails if the URL is none that a scene may have, or if the name of the campaign
    /// gives no name of a scene, or that of another one.
    pub(super) fn of(config: &'a Config, campaign: &str, url: &'a str) -> Result<Self, Failed> {
        let name = scene_of(campaign);
        let target = [("http", BTreeMap::from([("url", url)]))];
        let scene = BTreeMap::from([("target", BTreeMap::from(target))]);
        let file = BTreeMap::from([("scenes", BTreeMap::from([(&name, scene)]))]);
        let text = toml::to_string(&file).map_err(|error| Failed::new(Exit::Usage, &error))?;
        let scenes = retide_config::scenes("--to-url", text, &config.topics.prefix);
        let mut scenes = scenes.map_err(|error| Failed::new(Exit::Usage, &error))?;
        let scene = scenes
            .remove(&name)
            .unwrap_or_else(|| unreachable!("one scene was written"));
        let scene = Proposed::of(config, name, scene)?;
        Ok(Self { url, scene })
    }

    /// Says by what the tasks go there.
    pub(super) fn tell(&self) {
        let (url, name) = (self.url, self.scene.name());
        say(&format!(
            "the tasks follow the scene {name}, which has the target {url} and nothing else of their own scenes"
        ));
    }

    /// Puts the scene in force, and says what is to be done about it later.
    pub(super) fn put(&self, config: &Config) -> Result<(), Failed> {
        self.scene.put()?;
        let name = self.scene.name();
        say(&format!(
            "scene {name} is in force, and stays; when the campaign is over: {}",
            config.invocation.line(&format!("scenes delete {name}"))
        ));
        Ok(())
    }
}

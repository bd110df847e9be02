//! kubelet's side of containerd, in the small: asks for images, sandboxes and containers.

use std::path::Path;

use containerd::cri::image_service_client::ImageServiceClient;
use containerd::cri::runtime_service_client::RuntimeServiceClient;
use containerd::cri::{
    AuthConfig, ContainerConfig, ContainerMetadata, ContainerRequest, CreateContainerRequest, Empty,
    ExecSyncRequest, FilesystemUsage, IdMapping, ImageSpec, ImageStatusRequest, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxRequest, PullImageRequest,
    RemoveImageRequest, RunPodSandboxRequest, UserNamespace,
};
use tonic::Status;
use tonic::transport::Channel;

/// A connection to a containerd's CRI.
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    images: ImageServiceClient<Channel>,
    containers: RuntimeServiceClient<Channel>,
}

/// A pod: its sandbox, and what it was made of.
pub struct Pod {
    pub id: String,
    config: PodSandboxConfig,
    /// What its containers are told of its namespaces.
    linux: Option<LinuxContainerConfig>,
}

impl Cri {
    pub fn at(socket: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = runtime.block_on(floe::snapshotter::register::connect(socket)).unwrap();
        let (images, containers) =
            (ImageServiceClient::new(channel.clone()), RuntimeServiceClient::new(channel));
        let mut cri = Self { runtime, images, containers };
        // containerd answers before its CRI does.
        super::until("its CRI answers", || cri.runtime.block_on(cri.images.image_fs_info(Empty {})).is_ok());
        cri
    }

    /// Has images asked for elsewhere than containers, as `--image-service-endpoint` has kubelet do.
    pub fn images_at(mut self, socket: &Path) -> Self {
        let channel = self.runtime.block_on(floe::snapshotter::register::connect(socket)).unwrap();
        self.images = ImageServiceClient::new(channel);
        self
    }

    pub fn pull(&mut self, reference: &str) -> Result<String, Status> {
        self.pull_as(None, reference)
    }

    /// Pulls with what a pod's secret says.
    pub fn pull_as(&mut self, auth: Option<AuthConfig>, reference: &str) -> Result<String, Status> {
        let asked = PullImageRequest { image: Some(spec(reference)), auth, sandbox_config: None };
        Ok(self.runtime.block_on(self.images.pull_image(asked))?.into_inner().image_ref)
    }

    /// Says whether an image is there, as kubelet asks before it has one pulled.
    pub fn has(&mut self, reference: &str) -> bool {
        let asked = ImageStatusRequest { image: Some(spec(reference)) };
        self.runtime.block_on(self.images.image_status(asked)).unwrap().into_inner().image.is_some()
    }

    pub fn remove_image(&mut self, reference: &str) {
        let asked = RemoveImageRequest { image: Some(spec(reference)) };
        self.runtime.block_on(self.images.remove_image(asked)).unwrap();
    }

    /// Returns what the images take, as kubelet's eviction sees it.
    pub fn image_fs(&mut self) -> FilesystemUsage {
        self.try_image_fs().unwrap()
    }

    pub fn try_image_fs(&mut self) -> Result<FilesystemUsage, Status> {
        let info = self.runtime.block_on(self.images.image_fs_info(Empty {}))?.into_inner();
        Ok(info.image_filesystems.into_iter().next().unwrap())
    }

    /// Starts a pod that has the host's network.
    pub fn pod(&mut self, name: &str) -> Pod {
        let options = NamespaceOption { network: NamespaceMode::Node.into(), userns_options: None };
        self.try_pod(name, options, None).unwrap()
    }

    /// Starts one with users, groups and a network of its own, as of `hostUsers: false`.
    pub fn pod_of_others(&mut self, name: &str, users: u32, groups: u32) -> Result<Pod, Status> {
        let ids = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65_536 }];
        let own = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(users), gids: ids(groups) };
        let options = NamespaceOption { network: NamespaceMode::Pod.into(), userns_options: Some(own) };
        let security = LinuxContainerSecurityContext { namespace_options: Some(options.clone()) };
        self.try_pod(name, options, Some(LinuxContainerConfig { security_context: Some(security) }))
    }

    fn try_pod(
        &mut self,
        name: &str,
        options: NamespaceOption,
        linux_of_containers: Option<LinuxContainerConfig>,
    ) -> Result<Pod, Status> {
        let security = LinuxSandboxSecurityContext { namespace_options: Some(options) };
        let metadata =
            PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "default".into() };
        let linux = LinuxPodSandboxConfig { cgroup_parent: String::new(), security_context: Some(security) };
        let config = PodSandboxConfig { metadata: Some(metadata), linux: Some(linux) };
        let asked = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer = self.runtime.block_on(self.containers.run_pod_sandbox(asked))?;
        Ok(Pod { id: answer.into_inner().pod_sandbox_id, config, linux: linux_of_containers })
    }

    /// Starts a container in a pod; returns its ID.
    pub fn start(
        &mut self,
        pod: &Pod,
        name: &str,
        reference: &str,
        command: &[&str],
    ) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into() }),
            image: Some(spec(reference)),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: pod.linux.clone(),
        };
        let asked = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let created = self.runtime.block_on(self.containers.create_container(asked))?.into_inner();
        let asked = ContainerRequest { container_id: created.container_id.clone() };
        self.runtime.block_on(self.containers.start_container(asked))?;
        Ok(created.container_id)
    }

    /// Runs a command in a container that must succeed; returns what it printed.
    pub fn exec(&mut self, container: &str, command: &[&str]) -> Vec<u8> {
        self.try_exec(container, command).unwrap_or_else(|said| panic!("{command:?}: {said}"))
    }

    /// Runs a command in a container; returns what it printed, or its complaint.
    pub fn try_exec(&mut self, container: &str, command: &[&str]) -> Result<Vec<u8>, String> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let asked = ExecSyncRequest { container_id: container.into(), cmd };
        let done = self.runtime.block_on(self.containers.exec_sync(asked)).unwrap().into_inner();
        if done.exit_code != 0 {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        Ok(done.stdout)
    }

    /// Returns what a container has written.
    pub fn written(&mut self, container: &str) -> FilesystemUsage {
        let asked = ContainerRequest { container_id: container.into() };
        let stats = self.runtime.block_on(self.containers.container_stats(asked)).unwrap().into_inner();
        stats.stats.unwrap().writable_layer.unwrap()
    }

    pub fn remove(&mut self, container: &str) {
        let asked = ContainerRequest { container_id: container.into() };
        self.runtime.block_on(self.containers.stop_container(asked.clone())).unwrap();
        self.runtime.block_on(self.containers.remove_container(asked)).unwrap();
    }

    pub fn remove_pod(&mut self, pod: &Pod) {
        let asked = PodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.block_on(self.containers.stop_pod_sandbox(asked.clone())).unwrap();
        self.runtime.block_on(self.containers.remove_pod_sandbox(asked)).unwrap();
    }
}

fn spec(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.into() }
}
